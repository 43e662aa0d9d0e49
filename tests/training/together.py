"""One process of a run in several: started by torchrun in `test_together`. Prints nothing; writes what came of it.

Usage: together.py FOLDER EPOCHS [DIE_AT]
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from training_desk import data, plain

from binarize.errors import TrainingError
from binarize.finetune import Losses, Settings, finetune
from binarize.training.processes import leave


def main(folder, epochs, die_at):
    torch.set_num_threads(1)
    net, teacher = plain()

    def progress(step):
        if os.environ["RANK"] == "1" and (step.epoch, step.done) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = Settings(epochs=epochs, optimiser="sgd", schedule="constant", warmup=0.0, losses=Losses(labels=1.0))
    try:
        history = finetune(
            net, data(16), teacher=teacher, val=data(shuffle=False), settings=settings, checkpoint=folder / "run",
            resume=True, progress=progress,
        )  # fmt: skip
    except TrainingError as error:
        (folder / "error.txt").write_text(str(error))
        raise SystemExit(2) from None
    if os.environ["RANK"] == "0":
        (folder / "history.json").write_text(json.dumps(history.to_dict()))
        torch.save(net.state_dict(), folder / "net.pt")
    leave()
    (folder / f"threads{os.environ['RANK']}.json").write_text(json.dumps(threads()))


def threads():
    """Return the names of all threads, those of C++ too, where the system tells."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    words = sys.argv[3].split(",") if len(sys.argv) > 3 else ("0", "0")
    main(Path(sys.argv[1]), int(sys.argv[2]), (int(words[0]), int(words[1])))
