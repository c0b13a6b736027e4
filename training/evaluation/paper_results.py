"""The results that the paper prints in Tables 4, 5, 10 and 11, and those of later models, in percent."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """A row of a table."""

    short: str
    """Tables 4 and 5: number of short texts of the training data. Tables 10 and 11: the scale of the training data."""
    long: str
    """Tables 4 and 5: number of long texts of the training data. Tables 10 and 11: the image tower."""
    model: str
    values: tuple[float | None, ...]
    """R@1, R@5 or accuracy by column, in percent; None if none is published."""


TABLE_4_TASKS = ("dci", "iiw", "sharegpt4v-1k", "sharegpt4v-10k")
"""The columns of Tables 4 and 10: for each task, R@1 text to image and image to text; last, the mean of the eight."""

TABLE_4 = (
    PaperRow("3M", "–", "FILIP", (10.85, 11.36, 31.54, 29.08, 26.50, 26.80, 8.94, 8.64, 19.21)),
    PaperRow("3M", "–", "LaCLIP", (14.84, 14.71, 41.01, 38.89, 40.90, 37.10, 15.81, 14.84, 27.26)),
    PaperRow("3M", "–", "SigLIP", (11.66, 13.11, 29.25, 29.58, 27.30, 25.10, 9.92, 9.30, 19.40)),
    PaperRow("3M", "–", "LiT", (27.14, 24.13, 65.20, 58.50, 63.60, 56.80, 32.73, 27.01, 44.38)),
    PaperRow("3M", "3M", "LoTLIP", (49.46, 47.82, 84.97, 83.33, 93.20, 90.00, 76.49, 69.72, 74.37)),
    PaperRow("400M", "–", "CLIP", (45.45, 43.01, 88.24, 87.58, 84.50, 79.80, 60.22, 56.16, 68.12)),
    PaperRow("100M", "–", "LiT", (41.78, 40.90, 88.07, 82.68, 86.00, 80.00, 61.41, 50.69, 66.44)),
    PaperRow("700M", "–", "ALIGN", (56.54, 57.41, 92.65, 90.68, 86.30, 85.30, 65.13, 62.73, 74.59)),
    PaperRow("12B", "–", "SigLIP", (57.78, 56.22, 91.99, 91.01, 85.80, 83.40, 83.40, 63.08, 76.59)),
    PaperRow("400M", "1M", "Long-CLIP", (47.43, 44.18, 89.22, 86.93, 90.60, 87.40, 73.16, 62.03, 72.62)),
    PaperRow("100M", "100M", "LoTLIP", (62.10, 61.06, 93.95, 92.48, 96.50, 95.50, 86.84, 81.40, 83.72)),
)

RELEASED = PaperRow("100M", "100M", "LoTLIP, as released", (62.63, 64.11, 92.65, 94.28, None, None, 82.72, 88.40, None))
"""Not in the paper: the authors' figures of the ViT-B/16 that they published later, with their README's directions."""

TABLE_5_TASKS = ("mscoco", "flickr30k")
"""The columns of Tables 5 and 11: ImageNet's accuracy; then for each task R@1 and R@5, image to text and then text to
image."""

TABLE_5 = (
    PaperRow("3M", "–", "FILIP", (18.69, 14.98, 34.88, 11.86, 28.98, 30.40, 56.80, 20.76, 44.20)),
    PaperRow("3M", "–", "LaCLIP", (21.50, 18.94, 40.40, 12.42, 31.04, 37.00, 63.90, 29.32, 56.04)),
    PaperRow("3M", "–", "SigLIP", (21.28, 16.30, 37.36, 13.22, 31.65, 31.00, 61.10, 23.76, 48.64)),
    PaperRow("3M", "–", "LiT", (43.76, 34.20, 61.52, 24.07, 48.37, 61.30, 89.50, 48.06, 75.36)),
    PaperRow("3M", "3M", "LoTLIP", (50.34, 46.56, 72.02, 31.59, 57.65, 75.20, 94.20, 58.20, 83.58)),
    PaperRow("400M", "–", "CLIP", (68.34, 51.68, 76.72, 32.70, 57.76, 82.20, 96.60, 62.14, 85.72)),
    PaperRow("100M", "–", "LiT", (73.70, 51.92, 75.72, 32.74, 57.84, 80.00, 95.90, 60.86, 84.62)),
    PaperRow("700M", "–", "ALIGN", (65.89, 60.42, 82.50, 42.36, 67.38, 88.90, 98.00, 74.12, 92.40)),
    PaperRow("12B", "–", "SigLIP", (76.04, 65.46, 86.22, 47.14, 72.10, 89.10, 98.00, 74.66, 92.30)),
    PaperRow("400M", "1M", "Long-CLIP", (67.10, 57.28, 80.78, 40.34, 65.92, 85.90, 98.50, 70.66, 90.60)),
    PaperRow("100M", "100M", "LoTLIP", (72.16, 59.66, 81.50, 38.06, 63.81, 86.90, 97.80, 65.22, 87.98)),
)

# Tables 10 and 11 compare scales of training data and image towers. Their columns are those of Tables 4 and 5.
TABLE_10 = (
    PaperRow("3M", "ViT-B/32", "LiT", (24.11, 20.56, 59.48, 53.92, 57.80, 51.00, 28.19, 22.73, 39.72)),
    PaperRow("3M", "ViT-B/32", "LoTLIP", (44.46, 41.78, 83.99, 79.90, 91.40, 87.10, 71.17, 63.85, 70.45)),
    PaperRow("12M", "ViT-B/32", "LiT", (38.73, 33.91, 78.59, 77.12, 73.00, 69.20, 43.69, 38.27, 56.56)),
    PaperRow("12M", "ViT-B/32", "LoTLIP", (47.35, 45.86, 89.87, 87.58, 93.80, 91.90, 79.01, 73.00, 76.04)),
    PaperRow("30M", "ViT-B/32", "LiT", (39.41, 33.71, 85.13, 76.63, 79.40, 67.70, 52.09, 36.47, 58.82)),
    PaperRow("30M", "ViT-B/32", "LoTLIP", (51.12, 49.25, 89.87, 89.05, 94.40, 92.80, 82.66, 76.93, 78.26)),
    PaperRow("100M", "ViT-B/32", "LiT", (42.54, 39.12, 86.27, 83.17, 82.10, 76.90, 57.69, 47.99, 64.47)),
    PaperRow("100M", "ViT-B/32", "LoTLIP", (58.64, 55.20, 92.81, 91.67, 95.10, 93.10, 82.81, 77.46, 80.84)),
    PaperRow("400M+1M", "ViT-B/16", "Long-CLIP", (47.43, 44.18, 89.22, 86.93, 90.60, 87.40, 73.16, 62.03, 72.62)),
    PaperRow("3M", "ViT-B/16", "LiT", (27.14, 24.13, 65.20, 58.50, 63.60, 56.80, 32.73, 27.01, 44.38)),
    PaperRow("3M", "ViT-B/16", "LoTLIP", (49.46, 47.82, 84.97, 83.33, 93.20, 90.00, 76.49, 69.72, 74.37)),
    PaperRow("12M", "ViT-B/16", "LiT", (44.04, 39.86, 83.01, 80.88, 79.60, 74.80, 52.93, 45.79, 62.61)),
    PaperRow("12M", "ViT-B/16", "LoTLIP", (52.24, 50.72, 92.16, 89.87, 95.80, 93.80, 83.78, 77.51, 79.48)),
    PaperRow("30M", "ViT-B/16", "LiT", (38.68, 34.81, 85.29, 79.41, 81.40, 68.50, 54.63, 39.27, 60.24)),
    PaperRow("30M", "ViT-B/16", "LoTLIP", (56.04, 55.90, 93.79, 91.50, 96.90, 94.10, 86.72, 81.57, 82.06)),
    PaperRow("100M", "ViT-B/16", "LiT", (41.78, 40.90, 88.07, 82.68, 86.00, 80.00, 61.41, 50.69, 66.44)),
    PaperRow("100M", "ViT-B/16", "LoTLIP", (62.10, 61.06, 93.95, 92.48, 96.50, 95.50, 86.84, 81.40, 83.72)),
)

TABLE_11 = (
    PaperRow("3M", "ViT-B/32", "LiT", (38.83, 30.94, 57.02, 21.25, 44.60, 44.60, 83.80, 41.66, 71.70)),
    PaperRow("3M", "ViT-B/32", "LoTLIP", (45.50, 41.98, 68.44, 28.00, 53.36, 72.00, 91.10, 52.76, 79.16)),
    PaperRow("12M", "ViT-B/32", "LiT", (59.84, 40.70, 66.52, 26.48, 51.47, 66.90, 89.00, 49.52, 76.58)),
    PaperRow("12M", "ViT-B/32", "LoTLIP", (61.07, 50.84, 76.20, 33.19, 58.89, 77.30, 94.60, 57.46, 83.08)),
    PaperRow("30M", "ViT-B/32", "LiT", (64.95, 42.48, 68.36, 25.70, 50.50, 67.80, 89.80, 47.64, 76.14)),
    PaperRow("30M", "ViT-B/32", "LoTLIP", (65.41, 52.52, 76.72, 32.51, 57.90, 78.40, 95.00, 56.16, 81.14)),
    PaperRow("100M", "ViT-B/32", "LiT", (68.26, 47.98, 72.80, 29.69, 55.24, 75.60, 93.90, 54.52, 81.34)),
    PaperRow("100M", "ViT-B/32", "LoTLIP", (67.20, 55.62, 79.30, 34.98, 60.80, 82.60, 95.30, 59.58, 84.56)),
    PaperRow("400M+1M", "ViT-B/16", "Long-CLIP", (67.10, 57.28, 80.78, 40.34, 65.92, 85.90, 98.50, 70.66, 90.60)),
    PaperRow("3M", "ViT-B/16", "LiT", (43.76, 34.20, 61.52, 24.07, 48.37, 61.30, 89.50, 48.06, 75.36)),
    PaperRow("3M", "ViT-B/16", "LoTLIP", (50.34, 46.56, 72.02, 31.59, 57.65, 75.20, 94.20, 58.20, 83.58)),
    PaperRow("12M", "ViT-B/16", "LiT", (65.97, 44.78, 70.46, 29.57, 54.58, 72.90, 92.90, 54.18, 81.18)),
    PaperRow("12M", "ViT-B/16", "LoTLIP", (66.70, 55.18, 78.54, 36.22, 62.05, 82.60, 96.30, 62.74, 86.78)),
    PaperRow("30M", "ViT-B/16", "LiT", (69.91, 45.46, 70.48, 27.66, 51.96, 73.40, 93.10, 53.16, 78.94)),
    PaperRow("30M", "ViT-B/16", "LoTLIP", (70.60, 55.58, 79.68, 34.34, 59.85, 81.80, 95.70, 60.52, 84.22)),
    PaperRow("100M", "ViT-B/16", "LiT", (73.70, 51.92, 75.72, 32.74, 57.84, 80.00, 95.90, 60.86, 84.62)),
    PaperRow("100M", "ViT-B/16", "LoTLIP", (72.16, 59.66, 81.50, 38.06, 63.81, 86.90, 97.80, 65.22, 87.98)),
)


@dataclass(frozen=True)
class LaterModel:
    """Published results of a model on long texts. Figures have the decimals of their source."""

    training: str
    model: str
    values: Mapping[str, str]
    """R@1 by task, image to text / text to image."""
    source: str
    is_read: bool = False
    """Whether the figures were read in the source."""


LATER_TASKS = {
    "dci": "DCI",
    "iiw": "IIW",
    "sharegpt4v-1k": "SV-1k",
    "sharegpt4v-10k": "SV-10k",
    "urban-1k": "Urban-1k",
    "docci": "DOCCI",
}
"""The columns of the table of later models, with their titles."""

NOT_READ = (
    "With a dagger (†): from notes about the source. The figure and its direction were not read in the source itself; "
    "check them there before you quote them. With one figure only, the direction is not known"
)

LATER_MODELS = (
    LaterModel(
        "100M",
        "LoTLIP B/16, as released",
        {
            "dci": "64.11 / 62.63",
            "iiw": "94.28 / 92.65",
            "sharegpt4v-10k": "88.40 / 82.72",
            "urban-1k": "88.80 / 84.80",
        },
        "README of github.com/wuw2019/LoTLIP at 301b906",
        is_read=True,
    ),
    LaterModel(
        "OpenAI CLIP + 30M long",
        "Fix-CLIP B/16",
        {"dci": "70.7 / 70.7", "iiw": "97.4 / 97.4", "sharegpt4v-1k": "98.6", "urban-1k": "90.8"},
        "arXiv 2507.10095",
    ),
    LaterModel(
        "OpenAI CLIP + 1M long",
        "Fix-CLIP B/16",
        {"dci": "59.7 / 63.0", "iiw": "93.8 / 95.6", "sharegpt4v-1k": "95.5", "urban-1k": "80.9"},
        "arXiv 2507.10095",
    ),
    LaterModel(
        "OpenAI CLIP + 1.2M long (ShareGPT4V)",
        "DeBias-CLIP B/16",
        {"dci": "68.5 / 67.6", "urban-1k": "93.1 / 93.0", "docci": "79.7 / 80.0"},
        "arXiv 2602.22419",
    ),
    LaterModel(
        "–",
        "SmartCLIP B",
        {"dci": "64.9 / 64.0", "urban-1k": "90.0 / 87.4", "docci": "77.4 / 78.0"},
        "arXiv 2507.22264",
    ),
    LaterModel(
        "–",
        "LLM2CLIP B/16",
        {"sharegpt4v-1k": "98.1 / 97.4", "urban-1k": "86.1 / 90.0", "docci": "84.1 / 85.0"},
        "arXiv 2411.04997",
    ),
    LaterModel("1.56B", "FineViT 0.86B", {"dci": "83.4 / 84.8", "urban-1k": "– / 99.1"}, "arXiv 2603.17326"),
)
"""Models that were published after LoTLIP."""
