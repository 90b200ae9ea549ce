//! kmalloc: size classes, large objects, krealloc, kfree, array arithmetic
