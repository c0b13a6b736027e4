"""Tables of evaluations in the paper's layout, as Markdown or LaTeX: the paper's rows first, then the measured ones.

Tables 4 and 10 have R@1 on long texts, Tables 5 and 11 have short texts and ImageNet. Tables of later models and of
accuracies with hard negatives follow. Three more tables have all figures, the protocols, and the statistics of the sets
beside the paper's Table 1. Figures have their 95% intervals. Every table of figures states the shares of texts and
tokens that were cut, and in what the protocols of its measured rows differ. A figure is marked with * if it was
measured on a part of a set, or if images were damaged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lotlip_data.training.evaluation import protocol
from lotlip_data.training.evaluation.compare import CLUSTERS_NOTE
from lotlip_data.training.evaluation.outcomes import SELECTION_LABELS
from lotlip_data.training.evaluation.paper_results import (
    LATER_MODELS,
    LATER_TASKS,
    NOT_READ,
    RELEASED,
    TABLE_4,
    TABLE_4_TASKS,
    TABLE_5,
    TABLE_5_TASKS,
    TABLE_10,
    TABLE_11,
    LaterModel,
    PaperRow,
)
from lotlip_data.training.evaluation.results import NOT_MEASURED, Models, Results, TaskResult, group_by_model
from lotlip_data.training.evaluation.selection import OVERALL
from lotlip_data.training.evaluation.table_text import OURS, Format, Table, write

BY_TEXTS = ("Short", "Long", "Model")
BY_SCALE = ("Data", "Image tower", "Model")
LONG_COLUMNS = ("DCI T2I", "I2T", "IIW T2I", "I2T", "SV-1k T2I", "I2T", "SV-10k T2I", "I2T", "Avg.")
SHORT_COLUMNS = (
    "IN Acc.",
    *(f"{title} {direction} R@{k}" for title in ("COCO", "Flickr") for direction in ("I2T", "T2I") for k in (1, 5)),
)
SHORT_TASKS = ("imagenet", *TABLE_5_TASKS)
DIRECTIONS_NOTE = (
    "The paper's rows have the column names of the paper as it was read, T2I first. The released model has those of "
    "the authors' README (github.com/wuw2019/LoTLIP at 301b906), which gives the paper's figures of CLIP with the "
    "directions exchanged. One of both is wrong: compare single directions with care"
)
INTERVALS_NOTE = "In brackets: 95% interval, by a bootstrap over the queries"
NO_INTERVALS_NOTE = "Without brackets: from an earlier release, which stored no outcome per query; evaluate again"


def tables(evaluations: Sequence[Mapping[str, Any]], form: Format = "markdown") -> str:
    """Format evaluations as tables. A table for which nothing was measured is left out.

    Args:
        evaluations: Results of `evaluate_zero_shot`. Several of one model fill one row.
        form: The format of the tables.

    Raises:
        UserError: If two results of one model and task differ.
    """
    models = group_by_model(evaluations)
    long_rows, short_rows = (*TABLE_4, RELEASED), TABLE_5
    candidates = [
        _long_text_table("Table 4: long texts, R@1", BY_TEXTS, long_rows, models),
        _short_text_table("Table 5: short texts and ImageNet", BY_TEXTS, short_rows, models),
        _long_text_table("Table 10: long texts by the scale of the data, R@1", BY_SCALE, TABLE_10, models),
        _short_text_table("Table 11: short texts and ImageNet by the scale of the data", BY_SCALE, TABLE_11, models),
        _later_models_table(models),
        _hard_negatives_table(models),
        _all_figures_table(models),
        _protocol_table(models),
        _statistics_table(models),
    ]
    return "\n".join(write(table, form) for table in candidates if table.rows)


def figures_by_model(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of the tables by model and task. `partial` says whether a part of the set was measured.

    Raises:
        UserError: If two results of one model and task differ.
    """
    return {
        name: {task: {**result.figures, "partial": result.is_partial} for task, result in results.items()}
        for name, results in group_by_model(evaluations).items()
    }


def _long_text_table(title: str, head: tuple[str, ...], paper_rows: Sequence[PaperRow], models: Models) -> Table:
    """A table with the columns of Table 4."""
    table = _comparison(title, (*head, *LONG_COLUMNS), paper_rows, models, TABLE_4_TASKS, _long_text_cells)
    return replace(table, notes=(*table.notes, DIRECTIONS_NOTE))


def _short_text_table(title: str, head: tuple[str, ...], paper_rows: Sequence[PaperRow], models: Models) -> Table:
    """A table with the columns of Table 5."""
    return _comparison(title, (*head, *SHORT_COLUMNS), paper_rows, models, SHORT_TASKS, _short_text_cells)


def _comparison(
    title: str,
    columns: tuple[str, ...],
    paper_rows: Sequence[PaperRow],
    models: Models,
    tasks: Sequence[str],
    to_cells: Callable[[Results], list[str]],
) -> Table:
    """The paper's rows, then a row of each model that has a figure for the table; no row if no model has one."""
    cells = {name: to_cells(results) for name, results in models.items()}
    measured = {name: values for name, values in cells.items() if set(values) != {NOT_MEASURED}}
    if not measured:
        return Table(title, (), ())
    rows = [(row.short, row.long, row.model, *map(_two_decimals, row.values)) for row in paper_rows]
    rows += [(OURS, "", f"**{name}**", *values) for name, values in measured.items()]
    return Table(title, columns, tuple(rows), _measurement_notes({name: models[name] for name in measured}, tasks))


def _long_text_cells(results: Results) -> list[str]:
    """R@1 of each task in both directions, and their mean if all are measured."""
    columns = [(task, direction, "R@1") for task in TABLE_4_TASKS for direction in ("t2i", "i2t")]
    cells = [_percent(results, *column) for column in columns]
    if NOT_MEASURED in cells:
        return [*cells, NOT_MEASURED]
    mean = sum(results[task].share(*path) for task, *path in columns) / len(columns)
    return [*cells, f"{100 * mean:.2f}" + "*" * any("*" in cell for cell in cells)]


def _short_text_cells(results: Results) -> list[str]:
    """ImageNet's accuracy, then R@1 and R@5 of each task, image to text and text to image."""
    columns = [
        (task, direction, metric) for task in TABLE_5_TASKS for direction in ("i2t", "t2i") for metric in ("R@1", "R@5")
    ]
    return [_percent(results, "imagenet", "top1"), *(_percent(results, *column) for column in columns)]


def _percent(results: Results, task: str, *path: str) -> str:
    return results[task].percent(*path) if task in results else NOT_MEASURED


def _measurement_notes(models: Models, tasks: Sequence[str]) -> tuple[str, ...]:
    """What the measured rows of a table need to be read: shares cut, intervals, and differences of protocol."""
    return _cut_note(models, tasks), *_interval_notes(models, tasks), *_protocol_notes(models, tasks)


def _interval_notes(models: Models, tasks: Sequence[str] | None) -> list[str]:
    """How the intervals are made, and whether any is missing."""
    shown = [result for results in models.values() for task, result in results.items() if not tasks or task in tasks]
    with_intervals = [result for result in shown if "intervals" in result.figures]
    has_clusters = any(result.has_clusters for result in with_intervals)
    notes = [INTERVALS_NOTE + CLUSTERS_NOTE * has_clusters] if with_intervals else []
    return notes + [NO_INTERVALS_NOTE] * (len(with_intervals) < len(shown))


def _protocol_notes(models: Models, tasks: Sequence[str] | None) -> list[str]:
    """For each task, or those of `tasks`, in what the protocols of the models differ."""
    titles = {task: result.title for results in models.values() for task, result in results.items()}
    notes = []
    for task, title in titles.items():
        if tasks and task not in tasks:
            continue
        protocols = {name: results[task].protocol for name, results in models.items() if task in results}
        if differences := protocol.protocol_differences(protocols):
            notes.append(f"Measured with different protocols, {title}: {'; '.join(differences)}")
    return notes


def _later_models_table(models: Models) -> Table:
    """Published R@1 of later models on long texts, with their sources, and the measured models."""
    rows = [
        (row.training, row.model, *(_later_cell(row, task) for task in LATER_TASKS), row.source) for row in LATER_MODELS
    ]
    measured = {}
    for name, results in models.items():
        cells = [_both_directions(results, task) for task in LATER_TASKS]
        if set(cells) != {NOT_MEASURED}:
            measured[name] = (OURS, f"**{name}**", *cells, "measured")
    if not measured:
        return Table("", (), ())
    titles = [f"{title} I2T / T2I" for title in LATER_TASKS.values()]
    notes = _measurement_notes({name: models[name] for name in measured}, tuple(LATER_TASKS))
    return Table(
        "Later models: long texts, R@1",
        ("Training", "Model", *titles, "Source"),
        (*rows, *measured.values()),
        (NOT_READ, *notes),
    )


def _later_cell(row: LaterModel, task: str) -> str:
    value = row.values.get(task)
    return NOT_MEASURED if value is None else value + "†" * (not row.is_read)


def _both_directions(results: Results, task: str) -> str:
    """R@1, image to text and text to image."""
    if task not in results:
        return NOT_MEASURED
    both = " / ".join(results[task].percent(direction, "R@1") for direction in ("i2t", "t2i"))
    return both.replace("*", "") + "*" * results[task].is_partial


def _hard_negatives_table(models: Models) -> Table:
    """The accuracies of selection sets: one row per set and category, one column per model."""
    selecting = {
        name: {task: result for task, result in results.items() if "accuracy" in result.figures}
        for name, results in models.items()
    }
    measured = {name: results for name, results in selecting.items() if results}
    rows = []
    for task in dict.fromkeys(task for results in measured.values() for task in results):
        figures = [results[task].figures if task in results else {} for results in measured.values()]
        title = next(results[task].title for results in measured.values() if task in results)
        for figure, label in SELECTION_LABELS.items():
            for category in dict.fromkeys(category for each in figures for category in each.get(figure, ())):
                queries = next(each["queries"][category] for each in figures if category in each.get(figure, ()))
                cells = [
                    results[task].percent(figure, category) if category in each.get(figure, ()) else NOT_MEASURED
                    for results, each in zip(measured.values(), figures, strict=True)
                ]
                rows.append((title, f"{category} {label.removesuffix('Acc.')}".strip(), f"{queries:,}", *cells))
    columns = ("Task", "Category", "Queries", *(f"**{name}**" for name in measured))
    tasks = tuple(dict.fromkeys(task for results in measured.values() for task in results))
    notes = _measurement_notes(measured, tasks) if measured else ()
    return Table("Captions with hard negatives: accuracy", columns, tuple(rows), notes)


def _protocol_table(models: Models) -> Table:
    """The protocol of each model and task."""
    rows = tuple(
        (name, result.title, *(str(result.protocol.get(field, NOT_MEASURED)) for field in protocol.LABELS))
        for name, results in models.items()
        for result in results.values()
        if result.protocol
    )
    return Table("Protocols", ("Model", "Task", *map(str.capitalize, protocol.LABELS.values())), rows)


def _cut_note(models: Models, tasks: Sequence[str]) -> str:
    """For each model, the shares of each task's texts and tokens that were cut."""
    lines = []
    for name, results in models.items():
        cuts = [" / ".join((results[task].title, *results[task].cut_percents())) for task in tasks if task in results]
        lines.append(f"{name}: {', '.join(cuts)}")
    return f"Cut at the context length (task / texts / tokens): {'; '.join(lines)}"


def _all_figures_table(models: Models) -> Table:
    """One row per model and task: recall in both directions or accuracy, the shares cut, and damaged images."""
    metrics = [(direction, metric) for direction in ("t2i", "i2t") for metric in ("R@1", "R@5", "R@10")]
    rows = []
    for name, results in models.items():
        for result in results.values():
            if "t2i" in result.figures:
                cells = [result.percent(*metric) for metric in metrics]
            else:
                cells = [_accuracy_cell(result), *[NOT_MEASURED] * (len(metrics) - 1)]
            damaged = f"{len(result.figures['damaged']):,}"
            rows.append((name, result.title, *cells, *result.cut_percents(), damaged))
    columns = [f"{direction.upper()} {metric}" for direction, metric in metrics]
    columns[0] += " / Acc."
    return Table(
        "All figures",
        ("Model", "Task", *columns, "Texts cut", "Tokens cut", "Damaged"),
        tuple(rows),
        (*_interval_notes(models, None), *_protocol_notes(models, None)),
    )


def _accuracy_cell(result: TaskResult) -> str:
    """Top-1, or the accuracy of all queries of a selection set if they have a meaning together."""
    if "accuracy" not in result.figures:
        return result.percent("top1")
    return result.percent("accuracy", OVERALL) if OVERALL in result.figures["accuracy"] else NOT_MEASURED


def _statistics_table(models: Models) -> Table:
    """The statistics of the retrieval sets that were read, beside the published ones. Equal rows are shown once."""
    rows = [
        _statistics_row(result.settings)
        for results in models.values()
        for result in results.values()
        if "sub_captions_per_text" in result.settings.get("statistics", {})
    ]
    columns = ("Task", "Images", "Texts", "Sub-captions per text", "BERT tokens per text")
    return Table("Evaluation sets: as read / as published (Table 1)", columns, tuple(dict.fromkeys(rows)))


def _statistics_row(settings: Mapping[str, Any]) -> tuple[str, ...]:
    statistics, published = settings["statistics"], settings["published"]
    sub_captions, tokens = published.get("row") or (None, None)
    return (
        settings["title"],
        f"{statistics['images']:,} / {_whole(published['images'])}",
        f"{statistics['texts']:,} / {_whole(published['texts'])}",
        f"{statistics['sub_captions_per_text']:.2f} / {_two_decimals(sub_captions)}",
        f"{statistics['tokens_per_text']:.2f} / {_two_decimals(tokens)}",
    )


def _whole(value: int | None) -> str:
    return NOT_MEASURED if value is None else f"{value:,}"


def _two_decimals(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"
