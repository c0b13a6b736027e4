"""What can be found at most where a token limit makes texts equal, whatever a model has learned (of Fig. 4)."""

from collections import Counter
from collections.abc import Sequence

from lotlip_data.training.checkpoint import LoTLIP


def most_findable(model: str, texts: Sequence[str]) -> dict[str, float]:
    """The highest R@1 both ways that is left, in percent, of texts that each have a picture of their own.

    Equal texts have equal features, and ties count against the model. So of such texts one at most finds its picture
    first (t2i), and no picture finds its text first (i2t).
    """
    tokens = [tuple(ids) for ids in LoTLIP.load(model).tokenizer.encode(texts).ids]
    counts = Counter(tokens)
    alone = sum(count == 1 for count in counts.values())
    return {"t2i": 100 * len(counts) / len(tokens), "i2t": 100 * alone / len(tokens)}
