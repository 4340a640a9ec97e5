"""DIMSE: the storage SCP and SCU; the only package that imports pynetdicom."""
