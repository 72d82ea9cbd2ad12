"""Plans that travel: what one run decided, as a file that another run goes by without deciding anything.

A file of plans is JSON that says what it is and what it belongs to, and beside it a safetensors file of the same name
with masks in bits and token orders. `record` keeps what a run decides, `form` puts plans into rows and entries and
back, `manifest` is the JSON, `export` writes both files, and `loaded` answers for the methods of another run.
"""
