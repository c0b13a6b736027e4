"""The last training stage: a projector and a Llama learn to write a long text from cached visual features.

Also the tokenizers, which are small ones of the published kinds, and the prompts, which are worded like the published
captioners' prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from lotlip_data.synthetic.recipes.optimize import Schedule, minimise, shuffled_by_length
from lotlip_data.synthetic.recipes.perception import IGNORE

if TYPE_CHECKING:
    from transformers import BertTokenizer, LlamaConfig, LlamaModel, LlamaTokenizer


HIDDEN = 128  # width of every component of the three captioners
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
INSTRUCTION = "Describe the image in detail."
PROMPTS = {
    "instructblip": INSTRUCTION,
    "llava": f"USER: <image>\n{INSTRUCTION} ASSISTANT:",
    "sharegpt4v": (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        f"detailed, and polite answers to the human's questions. USER: <image>\n{INSTRUCTION} ASSISTANT:"
    ),
}


def llama_config(tokenizer: LlamaTokenizer, layers: int = 3) -> LlamaConfig:
    """A standard Llama with attention heads of size 32, which vLLM's CPU kernels support."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )


def train_language_model(
    name: str,
    projector: nn.Module,
    body: LlamaModel,
    head: nn.Module,
    features: Tensor,
    prompt: list[int],
    image_token: int,
    answers: list[list[int]],
    schedule: Schedule,
    seed: int,
) -> None:
    """Train next-token prediction of the answers after a prompt whose image tokens are the projected features.

    Args:
        name: Name of the stage in the printed progress.
        projector: Maps features to the width of the language model.
        body: The language model without its output layer.
        head: The output layer.
        features: Cached features of the frozen encoder, (N, L, D).
        prompt: Token ids, L of which are the image token.
        image_token: Id of the image token.
        answers: N lists of token ids, each ended by </s>.
        schedule: Number of steps and learning rate.
        seed: Seed of the order of the samples.

    Raises:
        ValueError: The prompt has another number of image tokens than L.
    """
    lengths = torch.tensor([len(answer) for answer in answers])
    texts = nn.utils.rnn.pad_sequence([torch.tensor(a) for a in answers], batch_first=True, padding_value=IGNORE)
    prompt_ids = torch.tensor(prompt)
    slots = prompt_ids == image_token
    if int(slots.sum()) != features.shape[1]:
        raise ValueError(
            f"the prompt has {int(slots.sum())} image tokens, but an image has {features.shape[1]} features"
        )
    embed = body.get_input_embeddings()

    def loss_of(index: Tensor) -> Tensor:
        labels = texts[index, : int(lengths[index].max())]
        question = embed(prompt_ids).expand(len(index), -1, -1).clone()
        question[:, slots] = projector(features[index])
        # Padding is on the right, so no position with a label attends to it.
        inputs = torch.cat([question, embed(labels[:, :-1].clamp(min=0))], dim=1)
        hidden = body(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, len(prompt) - 1 :]
        known = labels != IGNORE
        return functional.cross_entropy(head(hidden[known]), labels[known])

    batches = shuffled_by_length(lengths, schedule.batch, seed)
    minimise(name, loss_of, batches, [*projector.parameters(), *body.parameters(), *head.parameters()], schedule)


def llama_tokenizer(texts: Iterable[str]) -> LlamaTokenizer:
    """A tokenizer of Llama's kind: BPE over ▁words with byte fallback, then `<image>` and `<pad>` as on the Hub."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AddedToken, LlamaTokenizer

    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    # Splitting at spaces and full stops before the merges are learnt keeps every token within one word.
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(".", "isolated"), pre_tokenizers.Split("\n", "isolated")]
    )
    special = ["<unk>", "<s>", "</s>", *BYTE_TOKENS]
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=4096, special_tokens=special, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    tokenizer = LlamaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        add_bos_token=True,
        add_eos_token=False,
        model_max_length=1024,
    )
    tokenizer.add_tokens([AddedToken("<image>", normalized=False, special=True)], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": AddedToken("<pad>", normalized=False, special=True)})
    return tokenizer


def bert_tokenizer(texts: Iterable[str]) -> BertTokenizer:
    """A tokenizer of the Q-Former's kind: lower-case WordPiece over the words of the texts, and single letters."""
    from transformers import BertTokenizer

    words = sorted({word.strip(".,:;?!'") for text in texts for word in text.lower().split()})
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(dict.fromkeys(pieces))})
