"""Every error of loading names the captioner, the model, the cause and the remedy, and survives pickling."""

import pickle

import pydantic
import pytest
import torch

from lotlip_data.captioners.base import CaptionerConfig, EngineUnreachable
from lotlip_data.captioners.load_errors import EngineProcessError, EngineStartError, LoadError, explained
from lotlip_data.manifests.checkpoints.hub import HubUnreachable
from lotlip_data.manifests.errors import UserError

CONFIG = CaptionerConfig(name="mine", kind="llava", model="/models/mine")


class Settings(pydantic.BaseModel):
    number: int


def pydantic_error() -> Exception:
    try:
        Settings.model_validate({"number": "many"})
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


def raised(error: Exception) -> Exception:
    with pytest.raises((UserError, EngineStartError)) as caught, explained(CONFIG):
        raise error
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is type(caught.value) and str(copy) == str(caught.value)
    assert "\n" not in str(copy) and len(str(copy)) < 600
    return copy


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (TypeError("unsupported operand"), "TypeError: unsupported operand"),
        (AttributeError("no _tokenizer\n  in TokenizersBackend"), "AttributeError: no _tokenizer in Tokenizers"),
        (KeyError("patch_size"), "KeyError: 'patch_size'"),
        (OSError("does not appear to have a file named x"), "OSError: does not appear"),
        (EngineProcessError("ValueError: There is no module"), "the engine's process failed: ValueError: There is no"),
        (ImportError("no module named x"), "no module named x; install it where the engine runs"),
        (pydantic_error(), "number: Input should be a valid integer"),
    ],
)
def test_what_only_a_person_can_fix(error: Exception, cause: str) -> None:
    answer = raised(error)
    assert isinstance(answer, LoadError)
    assert str(answer).startswith("captioner 'mine': /models/mine does not load: ") and cause in str(answer)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error"),
        OSError(28, "No space left on device"),
        ConnectionResetError(104, "reset"),
        EngineProcessError("RuntimeError: CUDA error"),
        EngineProcessError("ValueError: Free memory on device cuda:0 is less than desired"),
        EngineUnreachable("http://host: no answer"),
    ],
)
def test_what_another_try_may_get_over(error: Exception) -> None:
    answer = raised(error)
    assert isinstance(answer, EngineStartError) and "captioner 'mine'" in str(answer)


def test_an_answer_of_the_hub_keeps_its_type_and_gets_the_captioners_name() -> None:
    answer = raised(HubUnreachable("/models/mine: cannot be reached", "check the network"))
    assert isinstance(answer, HubUnreachable)
    assert str(answer) == "captioner 'mine': /models/mine: cannot be reached; check the network"


def test_a_long_cause_is_cut() -> None:
    assert str(raised(ValueError("x" * 10_000))).endswith(
        "…; check the files of the model and the captioner's settings"
    )
