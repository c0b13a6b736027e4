"""Describes the dataset as Croissant JSON-LD (mlcommons.org/croissant/1.0), for search engines and data loaders."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from lotlip_data.manifests.formats import schema
from lotlip_data.pipeline.dataset.metadata import Description

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "equivalentProperty": "cr:equivalentProperty",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_TYPES = {
    pa.string(): "sc:Text",
    pa.int32(): "sc:Integer",
    pa.int64(): "sc:Integer",
    pa.float32(): "sc:Float",
    pa.float64(): "sc:Float",
    pa.bool_(): "sc:Boolean",
}


def croissant(description: Description) -> dict[str, Any]:
    """The Croissant metadata of a dataset: one record set per split, read from its Parquet files."""
    summary = description.summary
    tars = {split: names for split, names in description.tars.items() if names}
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": summary["name"],
        "description": f"{summary['samples']} images with raw texts and long texts by "
        f"{', '.join(summary['captioners']) or 'no captioner'}. Size and sha256 of every file: dataset.json.",
        **_origin(description),
        "version": f"{summary['schema_version']}.0.0",
        "distribution": [_file_set(split, names) for split, names in tars.items()],
        "recordSet": [_record_set(split, summary) for split in tars],
    }


def _origin(description: Description) -> dict[str, list[str]]:
    """The licences and homepages of the sources that the manifest names."""
    sources = description.sources
    licences = [f"{source['name']}: {source['licence']}" for source in sources if source["licence"]]
    homepages = [source["homepage"] for source in sources if source["homepage"]]
    return {name: values for name, values in (("license", licences), ("isBasedOn", homepages)) if values}


def _file_set(split: str, tars: list[str]) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{split}-parquet",
        "name": f"{split}-parquet",
        "description": "One row per sample, in the order of the tar of the same stem, which holds the images.",
        "encodingFormat": "application/x-parquet",
        "includes": [f"{name.removesuffix('.tar')}.parquet" for name in tars],
    }


def _record_set(split: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    scores = {column.name: column.meaning for column in schema.score_columns_of(summary)}
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "key": {"@id": f"{split}/uid"},
        "field": [
            _field(split, column, scores.get(column.name) or schema.meaning(column.name, summary.get("json_columns")))
            for column in schema.dataset_of(summary)
        ],
    }


def _field(split: str, column: pa.Field, description: str) -> dict[str, Any]:
    repeated = pa.types.is_list(column.type)
    return {
        "@type": "cr:Field",
        "@id": f"{split}/{column.name}",
        "name": column.name,
        "description": description,
        "dataType": _TYPES[column.type.value_type if repeated else column.type],
        **({"repeated": True} if repeated else {}),
        "source": {"fileSet": {"@id": f"{split}-parquet"}, "extract": {"column": column.name}},
    }
