//! Which crate may name which.
//! ```text
//! sync <- gfp <- buddy, slab, vmalloc, cma, zsmalloc, reclaim      (siblings never name one another)
//!         slab <- kmalloc;   kmalloc, vmalloc <- kvmalloc
//!         all of them <- kmem <- hosted <- lab
//! ```

use super::Finding;
use crate::workspace::{Package, Workspace};

/// The crates between `gfp` and `kmem`.
const BELOW_FACADE: [&str; 10] =
    ["sync", "gfp", "buddy", "slab", "kmalloc", "vmalloc", "kvmalloc", "cma", "zsmalloc", "reclaim"];

/// What a crate may depend on, tests included; `None` for a crate that the picture does not have.
fn allowed(short_name: &str) -> Option<Vec<&'static str>> {
    let mut allowed = match short_name {
        "sync" => vec![],
        "gfp" => vec!["sync"],
        "buddy" | "slab" | "vmalloc" | "cma" | "zsmalloc" | "reclaim" => vec!["sync", "gfp"],
        "kmalloc" => vec!["sync", "gfp", "slab"],
        "kvmalloc" => vec!["sync", "gfp", "kmalloc", "vmalloc"],
        "kmem" | "hosted" | "lab" => BELOW_FACADE.to_vec(),
        _ => return None,
    };
    if matches!(short_name, "hosted" | "lab") {
        allowed.push("kmem");
    }
    if short_name == "lab" {
        allowed.push("hosted");
    }
    Some(allowed)
}

/// Checks every crate's manifest.
pub(crate) fn check(workspace: &Workspace) -> Vec<Finding> {
    workspace.crates().flat_map(|package| check_package(workspace, package)).collect()
}

fn check_package(workspace: &Workspace, package: &Package) -> Vec<Finding> {
    let manifest = package.manifest_path.strip_prefix(&workspace.root).unwrap_or(&package.manifest_path);
    let name = package.short_name();
    let Some(allowed) = allowed(name) else {
        return vec![Finding::new(manifest, None, "layers", format!("`{name}` has no place among the layers"))];
    };
    let ours = |dependency: &str| workspace.packages.iter().any(|package| package.name == dependency);
    package
        .dependencies
        .iter()
        .filter(|dependency| ours(&dependency.name) && dependency.name != package.name)
        .filter_map(|dependency| {
            let on = dependency.name.strip_prefix("kmem-").unwrap_or(&dependency.name);
            let kind = dependency.kind.as_deref().unwrap_or("normal");
            (!allowed.contains(&on)).then(|| {
                let message = format!("`{name}` may not depend on `{on}` ({kind}): it may name {}", allowed.join(", "));
                Finding::new(manifest, None, "layers", message)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::allowed;

    #[test]
    fn siblings_never_name_one_another() {
        for one in ["buddy", "slab", "vmalloc", "cma", "zsmalloc", "reclaim"] {
            assert_eq!(allowed(one), Some(vec!["sync", "gfp"]), "{one}");
        }
    }

    #[test]
    fn an_unknown_crate_has_no_place() {
        assert_eq!(allowed("utils"), None);
    }

    #[test]
    fn nothing_below_knows_the_facade() {
        for one in super::BELOW_FACADE {
            assert!(!allowed(one).is_some_and(|names| names.contains(&"kmem")), "{one}");
        }
    }
}
