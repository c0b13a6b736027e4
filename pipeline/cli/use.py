"""The commands that use a trained model."""

from typing import Annotated

import typer

from lotlip_data.pipeline.cli.common import FAILED, Json, command

Model = Annotated[
    str,
    typer.Argument(
        help="A trained model's folder, such as RUN/train/lotlip/model; or open_clip:MODEL/WEIGHTS, "
        "open_clip:local-dir:FOLDER or clip:FOLDER_OR_HUB_ID."
    ),
]
Device = Annotated[str | None, typer.Option(help="Device: cpu, cuda, cuda:1, …. Default: a GPU where there is one.")]


def embed(
    model: Model,
    out: Annotated[
        str, typer.Argument(help="Parquet file to write, with the columns `name` or `text`, and `feature`.")
    ],
    images: Annotated[str | None, typer.Option(help="Folder of images; its folders are included.")] = None,
    texts: Annotated[str | None, typer.Option(help="Text file with one text per line.")] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Write a trained model's features of images or texts.

    Features have unit length; the product of two is their cosine similarity.

    Example: lotlip-data embed runs/demo/train/lotlip/model photos.parquet --images ~/photos
    """
    with command("embed", json) as console:
        from lotlip_data.manifests.errors import UserError
        from lotlip_data.manifests.wording import count, group

        if (images is None) == (texts is None):
            raise UserError("give either --images FOLDER or --texts FILE")
        from lotlip_data.training.embed import check_input, embed_images, embed_texts
        from lotlip_data.training.evaluation.models import load_embedder

        check_input(out, images, texts)
        loaded = load_embedder(model, device)
        if images is not None:
            result = embed_images(loaded, images, out, device)
        else:
            result = embed_texts(loaded, str(texts), out, device)
        console.print(f"{count(result.written, 'feature')} of {result.width} numbers in {out}")
        console.result({"written": result.written, "failed": len(result.failed)})
        if result.failed:
            console.print(f"embed: {len(result.failed):,} failed")
            for reason in group(result.failed, shown=20):
                console.print(f"  {reason}")
            raise typer.Exit(FAILED)


def search(
    images: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES",
            help="A folder of images (its folders are included), a run with a dataset, or a Parquet file of `embed`.",
        ),
    ],
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="The text, of any length. `-` reads standard input.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="A trained model's folder, such as RUN/train/lotlip/model; or open_clip:MODEL/WEIGHTS, "
            "open_clip:local-dir:FOLDER or clip:FOLDER_OR_HUB_ID.",
            show_default=False,
        ),
    ] = ...,  # type: ignore[assignment]
    text_file: Annotated[str | None, typer.Option(help="UTF-8 file with the text, instead of TEXT.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of images to list.")] = 10,
    index: Annotated[
        str | None,
        typer.Option(help="Folder for the features of the images. Default: IMAGES.index, beside a local folder."),
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """List the images that are most similar to a text.

    The features of the images are kept. The next search computes only those of new and changed images.

    Example: lotlip-data search ~/photos "A dog on a beach. The sky is cloudy." --model runs/demo/train/lotlip/model
    """
    with command("search", json) as console:
        from lotlip_data.manifests.wording import count

        query = _read_text(text, text_file)
        from lotlip_data.training.evaluation.models import load_embedder
        from lotlip_data.training.search import search_images

        result = search_images(load_embedder(model, device), images, query, top=top, index=index, device=device)
        for name, similarity in result.nearest:
            console.print(f"{similarity:7.4f}  {name}")
        console.print(f"{count(result.searched, 'image')} searched, {result.indexed:,} of them indexed now")
        if result.unreadable:
            console.print(f"{count(result.unreadable, 'image')} cannot be read")
            for name, reason in result.unreadable_names:
                console.print(f"  {name}: {reason}")
        console.result(
            {
                "results": [{"name": name, "similarity": similarity} for name, similarity in result.nearest],
                "searched": result.searched,
                "indexed": result.indexed,
                "unreadable": result.unreadable,
            }
        )


def _read_text(text: str | None, file: str | None) -> str:
    """The text of the command line, of a file or of standard input. Raises UserError if there is none."""
    import sys

    from lotlip_data.manifests import storage
    from lotlip_data.manifests.errors import UserError

    if (text is None) == (file is None):
        raise UserError("give either TEXT or --text-file FILE")
    try:
        if file is not None:
            text = storage.read_bytes(file).decode()
        elif text == "-":
            text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"the text is not UTF-8 ({error}); convert it to UTF-8") from None
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file") from None
    if not text or not text.strip():
        raise UserError("the text is empty; describe the images to find")
    return text
