"""Shards that lie elsewhere: transfers that outlive faults, a cache per node, fetching ahead.

`shards.RemoteShards` is what a reader uses; `folder_copy` opens a dataset by its URL. Everything
here is imported only when something remote is read.
"""
