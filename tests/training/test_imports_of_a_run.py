"""What a run on the CPU imports: none of what only a compiler, or a picture, needs before the first step."""

import subprocess
import sys

CHILD = """
import sys
from fastmlp.training import pretrain, trainer

class Stepped(Exception):
    pass

step = trainer.Trainer.step

def first_step(self, *batch):
    step(self, *batch)
    self.optimizer.load_state_dict(self.optimizer.state_dict())
    raise Stepped

trainer.Trainer.step = first_step
for optimizer in ("lion", "adamw", "sgd", "muon"):
    settings = dict(option.split("=") for option in sys.argv[1:])
    settings["run_dir"] += optimizer
    try:
        pretrain.train("synthetic", optimizer=optimizer, arch="B_2-Wi_16", batch_size=100, epochs=2, **settings)
    except Stepped:
        names = "torch._dynamo", "torch._inductor", "sympy", "matplotlib", "scipy.linalg", "setuptools", "tensorboard"
        print(optimizer, *sorted(set(names) & set(sys.modules)))
"""


def test_the_first_step_imports_no_compiler_and_nothing_for_pictures(data_dir, tmp_path):
    settings = "res=8", f"data_dir={data_dir}", f"run_dir={tmp_path / 'run'}"
    child = [sys.executable, "-c", CHILD, *settings, "clip_norm=1", "ema_decay=0.9", "crop=random_resized"]
    ended = subprocess.run(child, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["lion", "adamw", "sgd", "muon"]
