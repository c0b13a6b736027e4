"""The tasks by name, in the order of the paper's tables."""

from lotlip_data.training.eval_tasks.dci import DCI
from lotlip_data.training.eval_tasks.docci import DOCCI
from lotlip_data.training.eval_tasks.iiw import IIW
from lotlip_data.training.eval_tasks.imagenet import IMAGENET
from lotlip_data.training.eval_tasks.karpathy import FLICKR30K, MSCOCO
from lotlip_data.training.eval_tasks.sharegpt4v import SHAREGPT4V_1K, SHAREGPT4V_10K
from lotlip_data.training.eval_tasks.task import Task
from lotlip_data.training.eval_tasks.urban1k import URBAN_1K

TASKS: dict[str, Task] = {
    task.name: task for task in (DCI, IIW, SHAREGPT4V_1K, SHAREGPT4V_10K, URBAN_1K, DOCCI, MSCOCO, FLICKR30K, IMAGENET)
}
