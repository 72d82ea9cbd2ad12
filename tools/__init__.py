"""Generators of the pages in docs/ and of tables in README.md. They belong to a checkout, not to an installed dittools.

    python -m dittools.tools.figures          tables of measurements, from docs/measured/*.json
    python -m dittools.tools.methods_page     docs/methods.md, from the registries and measurements
    python -m dittools.tools.models_matrix    the matrix of model families in README.md
    python -m dittools.tools.pipelines_page   docs/pipelines.md
    python -m dittools.tools.curves           pictures of docs/performance.md

Each takes --check, which changes nothing and fails where a page is out of date.
`site_rooms` helps MkDocs and mypy to find the rooms; `type_check` runs mypy over the public API.
"""
