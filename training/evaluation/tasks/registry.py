"""All evaluation sets by name: long texts, short texts, classification, then the selection of captions."""

from lotlip_data.training.evaluation.tasks.base import Task
from lotlip_data.training.evaluation.tasks.coco_flickr import FLICKR30K, MSCOCO
from lotlip_data.training.evaluation.tasks.dci import DCI
from lotlip_data.training.evaluation.tasks.docci import DOCCI
from lotlip_data.training.evaluation.tasks.fg_ovd import FG_OVD, FG_OVD_ATTRIBUTES
from lotlip_data.training.evaluation.tasks.fg_retrieval import FLICKR30K_FG, MSCOCO_FG
from lotlip_data.training.evaluation.tasks.iiw import IIW
from lotlip_data.training.evaluation.tasks.imagenet import IMAGENET
from lotlip_data.training.evaluation.tasks.sdci import SDCI
from lotlip_data.training.evaluation.tasks.sharegpt4v import SHAREGPT4V_1K, SHAREGPT4V_10K
from lotlip_data.training.evaluation.tasks.sugarcrepe import SUGARCREPE, SUGARCREPE_PP
from lotlip_data.training.evaluation.tasks.urban1k import URBAN_1K

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(DCI, IIW, SHAREGPT4V_1K, SHAREGPT4V_10K, URBAN_1K, DOCCI),
        *(MSCOCO, FLICKR30K, MSCOCO_FG, FLICKR30K_FG),
        IMAGENET,
        *(SDCI, FG_OVD, FG_OVD_ATTRIBUTES, SUGARCREPE, SUGARCREPE_PP),
    )
}
