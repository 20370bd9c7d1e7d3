"""Write a cache as the `label` column for offline distillation with sentence-transformers.

python examples/label_column.py CACHE TEXTS OUTPUT.parquet         writes columns `sentence` and `label`
python examples/label_column.py CACHE TEXTS OUTPUT.parquet MODEL   also trains MODEL on them

TEXTS has one text per line, and the cache must contain all of them. Training needs `pip install
sentence-transformers` (6.2 or later); our tests do not run it.
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from advl_pipeline import open_cache, text_unit_id


def write_labels(cache, texts, output):
    """Write each text with its teacher vector."""
    vectors = open_cache(cache).text.global_features([text_unit_id(text) for text in texts])
    width = vectors.shape[1]
    label = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype("float32").ravel()), width)
    pq.write_table(pa.table({"sentence": texts, "label": label}), output)
    print(f"{len(texts)} sentences with labels of {width} numbers: {output}")


def train(model_name, labels):
    """Train a sentence-transformers model on the labels; no teacher is loaded."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.losses import EmbedDistillLoss

    model = SentenceTransformer(model_name)
    trainer = SentenceTransformerTrainer(
        model=model, train_dataset=Dataset.from_parquet(labels), loss=EmbedDistillLoss(model)
    )
    trainer.train()


if __name__ == "__main__":
    cache, texts, output, *model = sys.argv[1:]
    write_labels(cache, Path(texts).read_text(encoding="utf-8").splitlines(), output)
    if model:
        train(model[0], output)
