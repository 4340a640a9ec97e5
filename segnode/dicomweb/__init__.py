"""DICOMweb (PS3.18): the resources the node serves, and the client of other people's servers."""
