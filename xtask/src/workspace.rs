//! The workspace: its root, its packages and its files.

use anyhow::{Context as _, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A package as `cargo metadata` describes it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Package {
    /// `kmem-slab`
    pub(crate) name: String,
    /// Where its `Cargo.toml` is.
    pub(crate) manifest_path: PathBuf,
    /// Feature names and what each switches on.
    pub(crate) features: BTreeMap<String, Vec<String>>,
    /// Everything that it depends on.
    pub(crate) dependencies: Vec<Dependency>,
}

/// One dependency of a package.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Dependency {
    /// The package depended on.
    pub(crate) name: String,
    /// `None`, `dev` or `build`.
    pub(crate) kind: Option<String>,
}

impl Package {
    /// The package's folder.
    pub(crate) fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new(""))
    }

    /// The name without the prefix of the project: `slab`; the facade is `kmem`.
    pub(crate) fn short_name(&self) -> &str {
        self.name.strip_prefix("kmem-").unwrap_or(&self.name)
    }
}

/// The workspace that this binary was built from.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Its packages, by name.
    pub(crate) packages: Vec<Package>,
    /// Where builds go.
    pub(crate) target: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
    target_directory: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn load() -> anyhow::Result<Self> {
        let output = Command::new(cargo())
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .output()
            .context("cannot run cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        let mut metadata: Metadata =
            serde_json::from_slice(&output.stdout).context("cargo metadata: unexpected output")?;
        metadata.packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { root: metadata.workspace_root, packages: metadata.packages, target: metadata.target_directory })
    }

    /// The packages under `crates/`.
    pub(crate) fn crates(&self) -> impl Iterator<Item = &Package> {
        let folder = self.root.join("crates");
        self.packages.iter().filter(move |package| package.folder().starts_with(&folder))
    }

    /// The packages under `crates/` that stay `no_std`: everything below `hosted`.
    pub(crate) fn no_std_crates(&self) -> impl Iterator<Item = &Package> {
        self.crates().filter(|package| !matches!(package.short_name(), "hosted" | "lab"))
    }

    /// Every `.rs` file under the given folders of the workspace, relative to the root, sorted.
    pub(crate) fn rust_files(&self, folders: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        self.files(folders, &["rs"])
    }

    /// Every file with one of these extensions under the given folders, relative to the root, sorted.
    pub(crate) fn files(&self, folders: &[&str], extensions: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut pending: Vec<PathBuf> = folders.iter().map(|folder| self.root.join(folder)).collect();
        while let Some(path) = pending.pop() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    let entries =
                        std::fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?;
                    pending.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
                }
            } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)) {
                found.push(path.strip_prefix(&self.root).unwrap_or(&path).to_owned());
            }
        }
        found.sort();
        Ok(found)
    }
}

/// The cargo that runs us.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}
