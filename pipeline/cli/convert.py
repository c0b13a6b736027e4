"""The commands that convert published checkpoints to this project's layout, and trained models to others."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.command_line import CommandLine
from lotlip_data.pipeline.cli.common import command

app = CommandLine(help="Convert checkpoints, and export trained models.")


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


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A trained model's folder, such as RUN/train/lotlip/model.")],
    out: Annotated[str, typer.Argument(help="A new folder on this machine.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="Layout of the folder: open_clip, transformers (with its code), or onnx (both towers).",
            show_default=False,
        ),
    ],
    hub_id: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="With open_clip: the hub id under which the folder will be published. Default: it stays where it is.",
        ),
    ] = None,
) -> None:
    """Export a trained model for open_clip, transformers or ONNX.

    The folder is read back with the library that it is for, and its features are compared with the model's.

    Example: lotlip-data convert export runs/mine/train/lotlip/model models/mine-open-clip --format open_clip
    """
    with command("convert", False):
        from lotlip_data.training.export import export_model

        export_model(model, out, form, hub_id)
