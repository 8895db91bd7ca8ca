"""The store on disk: written once and atomically, read lazily, never believed unchecked.

`writer.StoreWriter` makes a store, `reader.Store` and `host.HostSection` read it, `library` asks
about stores from the outside. docs/format.md says what lies on the disk.
"""
