"""The figures that the paper prints: ViT-B/16, pre-trained on 3M images unless a scale is named."""

from collections.abc import Sequence
from statistics import fmean


def metrics(columns: Sequence[float]) -> dict[str, float]:
    """The metrics that the study compares.

    Args:
        columns: Nine percentages: R@1 on DCI, IIW, ShareGPT4V-10k and MSCOCO, each text to image and image to text,
            and ImageNet top-1.

    Returns:
        The mean of the six long-text columns, the mean of the two short-text columns, and the accuracy.
    """
    return {"long": fmean(columns[:6]), "short": fmean(columns[6:8]), "class": columns[8]}


LIT = metrics((27.14, 24.13, 65.20, 58.50, 32.73, 27.01, 24.07, 34.20, 43.76))
LIT_LONG = metrics((47.96, 44.92, 84.97, 81.70, 73.66, 66.73, 30.06, 43.52, 48.87))
LONGCLIP = metrics((47.21, 46.61, 83.82, 83.01, 74.60, 67.49, 26.74, 43.78, 46.82))
LOTLIP = metrics((49.46, 47.82, 84.97, 83.33, 76.49, 69.72, 31.59, 46.56, 50.34))

CORNERS = (
    LIT_LONG,
    metrics((49.57, 46.55, 84.97, 82.68, 74.91, 68.41, 31.51, 45.68, 49.62)),
    LOTLIP,
    metrics((49.58, 47.70, 87.09, 84.31, 76.51, 70.20, 31.60, 46.48, 50.36)),
    metrics((49.58, 48.30, 86.76, 84.15, 76.25, 70.14, 31.88, 47.70, 50.59)),
)
"""Table 3, by number of corner tokens, 0 to 4."""
UNMASKED = metrics((48.61, 47.17, 86.11, 81.86, 76.14, 69.31, 31.34, 47.70, 49.88))
REGISTER = metrics((45.62, 44.65, 83.99, 81.37, 74.42, 68.78, 30.34, 44.18, 48.78))

CLIP = metrics((11.67, 11.01, 33.17, 31.37, 10.69, 8.77, 10.93, 14.74, 16.54))
CLIP_LONG = metrics((42.92, 42.23, 77.29, 75.98, 66.78, 64.70, 22.33, 32.14, 23.28))
SCRATCH = metrics((43.91, 43.83, 78.76, 75.98, 70.20, 67.91, 24.11, 34.40, 24.65))

CAPTIONERS = {
    "instructblip": metrics((39.94, 38.54, 78.43, 75.33, 57.90, 55.17, 30.94, 44.60, 50.32)),
    "llava": metrics((41.67, 40.37, 78.26, 72.22, 54.50, 50.49, 31.10, 44.74, 48.10)),
    "sharegpt4v": metrics((47.21, 46.71, 85.78, 83.17, 77.93, 72.30, 30.96, 44.98, 49.34)),
}


def _scale_metrics(average: float, text_to_image: float, image_to_text: float, accuracy: float) -> dict[str, float]:
    return {"long": average, "short": fmean((text_to_image, image_to_text)), "class": accuracy}


SCALES = {
    ("lit", 1): _scale_metrics(44.38, 24.07, 34.20, 43.76),
    ("lotlip", 1): _scale_metrics(74.37, 31.59, 46.56, 50.34),
    ("lit", 3): _scale_metrics(62.61, 29.57, 44.78, 65.97),
    ("lotlip", 3): _scale_metrics(79.48, 36.22, 55.18, 66.70),
    ("lit", 10): _scale_metrics(60.24, 27.66, 45.46, 69.91),
    ("lotlip", 10): _scale_metrics(82.06, 34.34, 55.58, 70.60),
}
"""Tables 10 and 11, by method and scale (3M, 12M and 30M images).

The long-text metric is the mean of eight columns, the short-text metric that of MSCOCO's R@1.
"""
