"""The byte counts of the benchmarks; their timings are not tested."""

import pytest

from benchmarks.programs import wire_bytes

LINE = "  %x = {shapes} {kind}(%a, %b), channel_id=1, replica_groups={groups}, to_apply=%add"


@pytest.mark.parametrize(
    "shapes, kind, groups, sent",
    [
        ("f32[10,4]{1,0}", "all-reduce", "{{0,1}}", 2 * 1 / 2 * 160),
        ("(f32[3]{0}, s32[])", "all-reduce", "{{0,1,2,3},{4,5,6,7}}", 2 * 3 / 4 * 16),
        ("(bf16[8]{0}, u8[4]{0})", "all-gather", "[2,4]<=[8]", 3 / 4 * 20),
        ("f32[10]{0}", "all-reduce", "{{0},{1}}", 0),
    ],
)
def test_bytes_of_collective_operations(shapes, kind, groups, sent):
    text = LINE.format(shapes=shapes, kind=kind, groups=groups)
    with pytest.raises(ValueError, match="not counted"):
        wire_bytes(text.replace(kind, "all-to-all"))
    assert wire_bytes(f"{text}\n  %y = f32[9]{{0}} add(%a, %b)\n{text}") == {kind: 2 * sent}
