"""What stands in KD's place: KL divergence, standardized logits, DKD or DIST, in KD and in ORC.

Temperatures are those of the authors' programs; the weights of KD and ORC are our defaults.
"""

from experiments.study import Study

DIVERGENCES = {
    "kl": "",
    "standardized": " --config.method.divergence=standardized --config.method.temperature=2",
    "dkd": " --config.method.divergence=dkd --config.method.temperature=4",
    "dist": " --config.method.divergence=dist --config.method.temperature=4",
}

STUDY = Study(
    bases=("configs/digits.py", "configs/cifar10.py", "configs/cifar100.py"),
    preset="orc",
    variants={
        "vanilla": "ind:{networks}",
        **{f"KD-{name}": "kd:{teacher},{student}" + rest for name, rest in DIVERGENCES.items()},
        **{f"ORC-{name}": "orc:{networks}" + rest for name, rest in DIVERGENCES.items()},
    },
    baseline="vanilla",
)
