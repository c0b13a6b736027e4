"""The commands that convert published checkpoints."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.command_line import CommandLine
from lotlip_data.pipeline.cli.common import command

app = CommandLine(help="Convert a checkpoint to or from this project's layout.")


@app.command()
def sharegpt4v(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="ShareGPT4V as published: a folder or a Hugging Face hub id.")
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="A new folder on this machine.")],
    revision: Annotated[str | None, typer.Option(help="Revision of SRC on the hub. Default: the newest.")] = None,
    vision_tower: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of the vision tower. Default: what SRC's mm_vision_tower names."),
    ] = None,
    vision_tower_revision: Annotated[
        str | None, typer.Option(help="Revision of the vision tower on the hub. Default: the newest.")
    ] = None,
) -> None:
    """Convert ShareGPT4V to the Hugging Face LLaVA layout.

    An interrupted conversion resumes when the same command runs again.

    Example: lotlip-data convert sharegpt4v Lin-Chen/ShareGPT4V-7B models/sharegpt4v
    """
    with command("convert", False):
        from lotlip_data.captioners.convert.sharegpt4v import convert

        tower = {"vision_tower": vision_tower, "vision_tower_revision": vision_tower_revision}
        convert(source, target, revision=revision, **tower)


@app.command()
def lotlip(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="The authors' checkpoint (file, folder or hub id), or a model's folder."),
    ],
    target: Annotated[
        str, typer.Argument(metavar="DST", help="A new folder, or a new .pt file where SRC is a model's folder.")
    ],
    revision: Annotated[str | None, typer.Option(help="Revision of SRC on the hub. Default: the newest.")] = None,
    image_tower: Annotated[
        str | None, typer.Option(help="Folder or hub id whose image configuration SRC has. Default: timm's ViT-B.")
    ] = None,
    text_tower: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub id whose text configuration and tokenizer SRC has. Default: bert-base-uncased."
        ),
    ] = None,
) -> None:
    """Convert the authors' LoTLIP to a model's folder, or back.

    Example: lotlip-data convert lotlip weiwu-ww/LoTLIP-ViT-B-16-100M models/lotlip-b16
    """
    with command("convert", False):
        from lotlip_data.training.convert_lotlip import convert

        convert(source, target, revision=revision, image_tower=image_tower, text_tower=text_tower)
