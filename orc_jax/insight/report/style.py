"""The page's style sheet: light, dark where the reader's system is, and light on paper."""

STYLE = """
:root { color-scheme: light; --text: #1b1f24; --dim: #5b6470; --page: #ffffff; --card: #f5f6f8;
  --line: #d5d9df; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b8548f; --c4: #a87500;
  --c5: #2f9fd8; --c6: #6b6b6b; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --text: #e6e9ee; --dim: #a3acb9; --page: #14171c; --card: #1d2229;
    --line: #3a424d; --c0: #4aa8e0; --c1: #ff8a3d; --c2: #2fc79b; --c3: #e08fc0; --c4: #e6b340;
    --c5: #8fd0f5; --c6: #a8a8a8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 16px; }
h1, h2 { overflow-wrap: anywhere; line-height: 1.25; }
h1 { font-size: 24px; }
h2 { font-size: 20px; margin-top: 40px; border-top: 2px solid var(--line); padding-top: 16px; }
h3 { font-size: 17px; margin: 28px 0 8px; }
p { margin: 4px 0 10px; color: var(--dim); }
a { color: var(--c0); }
.grid { display: grid; gap: 12px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 560px), 1fr)); }
figure { margin: 0; padding: 10px; background: var(--card); border-radius: 8px; min-width: 0;
  break-inside: avoid; }
figcaption { font-weight: 600; font-size: 14px; margin-bottom: 6px; overflow-wrap: anywhere; }
figure p { font-size: 13px; margin: 4px 0 0; }
svg { display: block; width: 100%; max-width: 520px; margin: 0 auto; }
svg text { font-size: 12px; fill: var(--text); }
svg text.on { fill: var(--page); }
.axes path { stroke: var(--line); fill: none; stroke-width: 1; }
.axes text { fill: var(--dim); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.area { stroke: none; opacity: 0.8; }
.bar { fill: var(--c0); }
.diagonal { stroke: var(--text); stroke-dasharray: 4 4; fill: none; }
.frame { fill: none; stroke: var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; list-style: none; margin: 6px 0 0;
  padding: 0; font-size: 13px; }
.legend i { display: inline-block; width: 18px; margin-right: 6px; vertical-align: middle; }
.images { display: flex; flex-wrap: wrap; gap: 10px; }
.images span { width: 104px; font-size: 12px; line-height: 1.35; white-space: pre-line;
  overflow-wrap: anywhere; }
.images img { display: block; width: 104px; border-radius: 4px; margin-bottom: 4px; }
.pixels { image-rendering: pixelated; }
.surface { display: block; width: 100%; max-width: 480px; margin: 10px auto 0;
  border-radius: 4px; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; }
.number { text-align: right; }
td.number { white-space: nowrap; }
td:first-child { min-width: 130px; }
summary { cursor: pointer; }
@media print { main { max-width: none; padding: 0; } h3, p { break-after: avoid; }
  .wide { grid-template-columns: 1fr 1fr; }
  .table { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
