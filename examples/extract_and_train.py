"""Extract two teachers and train a student from their caches: python examples/extract_and_train.py FOLDER

The corpus is the built-in one, very small, so that this takes a minute: it shows the calls, not a gain.
"""

import sys
from pathlib import Path

from advl_data.scenes.generator.build import run_build_scenes
from advl_data.scenes.generator.config import ScenesConfig
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.runner import run_evaluate
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.run import run_finetune


def main(folder: Path) -> None:
    """Do all of it below a folder; each step is skipped or resumed where it was done before."""
    data = folder / "data"
    run_build_scenes(
        ScenesConfig(
            data_root=data,
            num_caption_scenes=20,
            num_train=8,
            num_val=4,
            num_test=4,
            num_unseen=4,
            num_compositional=4,
            num_shift_inputs=4,
        )
    )
    caches = tuple(folder / name for name in ("minilm-l6", "efficientnet-lite0"))
    for cache in caches:
        run_extract(ExtractConfig(teacher=cache.name, dataset="scenes-vcr", output=cache, data_root=data, folds=2))
    trained = run_finetune(
        FinetuneConfig(
            dataset="scenes-vcr",
            data_root=data,
            task=("vcr-q2a",),
            method="advl",
            cache=caches,
            num_steps=4,
            adapt_steps=2,
            batch_size=4,
            confidence_folds=2,
            output=folder / "run",
        )
    )
    print(run_evaluate(EvaluateConfig(run=trained.output, on=("val",), probe=("none",), data_root=data)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
