"""ORC, table 10: k, how many students become temporary teachers.

k must be less than the number of students: a larger k needs a base with more of them.
"""

from experiments.study import Study

STUDY = Study(
    bases=("configs/digits.py", "configs/cifar10.py", "configs/cifar100.py"),
    preset="orc",
    variants={"vanilla": "ind:{networks}"}
    | {f"k={k}": f"orc:{{networks}} --config.method.num_temporary={k}" for k in range(3)},
    baseline="vanilla",
)
