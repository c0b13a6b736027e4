"""The figures that the paper prints, by arm: ViT-B/16, pre-trained on 3M images (Tables 2, 3, 7 and 9)."""

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


PRINTED = {
    "lit": metrics((27.14, 24.13, 65.20, 58.50, 32.73, 27.01, 24.07, 34.20, 43.76)),
    "lit_long": metrics((47.96, 44.92, 84.97, 81.70, 73.66, 66.73, 30.06, 43.52, 48.87)),
    "lit_longclip": metrics((47.21, 46.61, 83.82, 83.01, 74.60, 67.49, 26.74, 43.78, 46.82)),
    "register": metrics((45.62, 44.65, 83.99, 81.37, 74.42, 68.78, 30.34, 44.18, 48.78)),
    "lotlip": metrics((49.46, 47.82, 84.97, 83.33, 76.49, 69.72, 31.59, 46.56, 50.34)),
    "lotlip_m1": metrics((49.57, 46.55, 84.97, 82.68, 74.91, 68.41, 31.51, 45.68, 49.62)),
    "lotlip_m4": metrics((49.58, 48.30, 86.76, 84.15, 76.25, 70.14, 31.88, 47.70, 50.59)),
    "unmasked": metrics((48.61, 47.17, 86.11, 81.86, 76.14, 69.31, 31.34, 47.70, 49.88)),
    "only_instructblip": metrics((39.94, 38.54, 78.43, 75.33, 57.90, 55.17, 30.94, 44.60, 50.32)),
    "only_llava": metrics((41.67, 40.37, 78.26, 72.22, 54.50, 50.49, 31.10, 44.74, 48.10)),
    "only_sharegpt4v": metrics((47.21, 46.71, 85.78, 83.17, 77.93, 72.30, 30.96, 44.98, 49.34)),
}
"""By name of the arm in `design.py`, the values by metric, in percent."""
