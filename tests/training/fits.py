"""Training by the command line, tiny."""

import json
from pathlib import Path

from training.cli import main

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def fit(voc, cues, folder, *words, command="fit"):
    """Train SEC on nine images of 64 pixels, an epoch of three steps, in this process; the exit status."""
    arguments = [
        *(command, f"--config={CONFIGS / 'sec_demo.yaml'}", f"--output={folder}", "--model.weights=none"),
        *(f"--data.root={voc}", f"--data.cues={cues}", "--data.cues_checkpoint=null", "--data.size=64"),
        *("--data.train=9", "--data.val=4", "--data.image_size=96"),  # as the fixture `voc` writes it
        *("--data.cue_stride=8", "--data.batch_size=3", "--data.num_workers=0", "--trainer.max_epochs=1"),
        *("--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"),
        "--trainer.enable_model_summary=false",
    ]
    return main([*arguments, *words])


def read_record(folder):
    """Return the record in a run's folder."""
    return json.loads((folder / "provenance.json").read_text())
