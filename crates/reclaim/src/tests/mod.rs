//! Tests over a machine made for them.
