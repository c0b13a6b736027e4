"""What `plan` prints about the lists: a short answer, and on request every assumption."""

from lotlip_data.manifests.wording import count, duration, rate, size
from lotlip_data.pipeline.planning.lists import ListsPlan, format_rows
from lotlip_data.pipeline.planning.source_plan import SourcePlan


def format_text(plan: ListsPlan) -> list[str]:
    """Return the lines that `plan` prints."""
    lines = [line for source in plan.sources for line in _source_lines(source)]
    has_urls = any(not source.containers for source in plan.sources)
    if plan.images is not None:
        is_exact = all(source.read_whole for source in plan.sources)
        number = f"{plan.images:,}" if is_exact else f"about {plan.images:,}"
        shards = f"{count(plan.shards or 0, 'shard')} of {plan.samples_per_shard:,}"
        shards += " or one container" if any(source.containers for source in plan.sources) else ""
        condition = "every URL works" if has_urls else "every image is usable"
        lines.append(f"images       {number} without duplicates, in {shards}, if {condition}")
    estimate = plan.storage
    if estimate["images"] is not None and estimate["dataset"] is not None:
        images, dataset = size(estimate["images"]), size(estimate["dataset"])
        lines.append(f"storage      images {images}, dataset {dataset} (estimate)")
    if not has_urls:
        lines.append("download     nothing: the images are checked where they lie")
    elif plan.download is not None:
        seconds, speed = plan.download["seconds"], rate(plan.download["urls_per_s"], "URLs")
        left = f"{duration(seconds)} at {speed} ({plan.download['source']})" if plan.download["urls"] else "done"
        lines.append(f"download     {left}")
    lines += [f"note         {note}" for note in plan.notes]
    lines += [f"problem      {problem}" for problem in plan.problems]
    return lines


def _source_lines(plan: SourcePlan) -> list[str]:
    lines = [f"{plan.name:12} {count(plan.files, 'file')}, {format_rows(plan)} rows, {plan.seen:,} rows read"]
    if not plan.seen:
        return lines
    shares = [f"{plan.taken / plan.seen:.1%} usable and kept"]
    if plan.taken:
        duplicates = f"{plan.duplicates / plan.taken:.1%} of these duplicates"
        shares += [count(plan.containers, "container")] if plan.containers else [duplicates, count(plan.hosts, "host")]
    lines.append(f"             {', '.join(shares)}")
    lines += [f"             {number:,} × {reason}" for reason, number in (plan.invalid | plan.filtered).items()]
    return lines


def format_assumptions(plan: ListsPlan) -> list[str]:
    """Return the lines that `plan --assumptions` adds."""
    lines = []
    for source in plan.sources:
        shares = ", ".join(f"{host} {share:.1%}" for host, share in source.top_hosts.items())
        if source.seen:
            hosts = "" if source.containers else f"; hosts {shares}"
            lines.append(f"detail       {source.name}: columns {', '.join(source.columns) or 'none'}{hosts}")
        if source.images is not None and not source.read_whole:
            lines.append(
                f"assumption   {source.name}: the other rows are like those read; duplicates between rows that were "
                "not read are not known, and make the number of images smaller"
            )
    if plan.storage["images"] is not None:
        lines.append(f"assumption   storage: {plan.storage['assumes']}")
    if plan.download is not None and any(not source.containers for source in plan.sources):
        lines.append(f"assumption   download: {plan.download['assumes']}")
    return lines
