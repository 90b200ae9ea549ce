//! Tests of areas and devices' memory over a small machine made for them.
