//! To be filled.

super::tests![];
