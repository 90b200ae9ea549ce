//! Where pages come from.

use super::recorded::Sizes;
use super::{Algorithm, ZramOptions};
use crate::LabError;
use kmem_hosted::PageBytes;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Pages to store.
#[derive(Clone, Debug)]
pub enum Source {
    /// Files, each cut into pages; the last page of each is filled up with zeroes.
    Files(Vec<(PathBuf, u64)>),
    /// Pages with the sizes that Linux's zram recorded.
    Recorded(Algorithm),
}

fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> LabError {
    let path = path.display().to_string();
    move |why| LabError::Read { path, why }
}

/// Adds a file, or the files of a folder in the order of their names.
fn collect(path: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<(), LabError> {
    let meta = std::fs::metadata(path).map_err(unreadable(path))?;
    if meta.is_file() {
        files.push((path.to_owned(), meta.len()));
        return Ok(());
    }
    let entries = std::fs::read_dir(path).map_err(unreadable(path))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        // What a folder happens to have besides files and folders is left out: links, devices, sockets.
        let kind = std::fs::symlink_metadata(&path).map_err(unreadable(&path))?.file_type();
        if kind.is_file() || kind.is_dir() {
            collect(&path, files)?;
        }
    }
    Ok(())
}

impl Source {
    /// What the options ask for.
    ///
    /// # Errors
    /// [`LabError::Read`], [`LabError::NoPages`].
    pub fn new(options: &ZramOptions) -> Result<Self, LabError> {
        if options.files.is_empty() {
            return Ok(Self::Recorded(options.algorithm));
        }
        let mut files = Vec::new();
        for path in &options.files {
            collect(path, &mut files)?;
        }
        let source = Self::Files(files);
        if source.nr_pages() == 0 { Err(LabError::NoPages) } else { Ok(source) }
    }

    /// How many pages there are, if the files do not grow.
    #[must_use]
    pub fn nr_pages(&self) -> u64 {
        match self {
            Self::Files(files) => files.iter().map(|(_, bytes)| bytes.div_ceil(4096)).sum(),
            Self::Recorded(algorithm) => Sizes::of(*algorithm).nr(),
        }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Files(files) => match files.as_slice() {
                [(path, _)] => path.display().to_string(),
                files => format!("{} files", files.len()),
            },
            Self::Recorded(algorithm) => format!("recorded sizes ({}, Linux 7.2.13)", algorithm.name()),
        }
    }

    /// Calls `f` with the number and the bytes of each page.
    ///
    /// # Errors
    /// [`LabError::Read`], and those of `f`.
    pub fn each(&self, mut f: impl FnMut(u64, &PageBytes) -> Result<(), LabError>) -> Result<(), LabError> {
        match self {
            Self::Recorded(algorithm) => {
                let sizes = Sizes::of(*algorithm);
                (0..sizes.nr()).try_for_each(|number| f(number, &sizes.page(number)))
            }
            Self::Files(files) => {
                let mut number = 0;
                for (path, bytes) in files {
                    let mut file = File::open(path).map_err(unreadable(path))?;
                    for _ in 0..bytes.div_ceil(4096) {
                        let mut page = [0; 4096];
                        fill(&mut file, &mut page).map_err(unreadable(path))?;
                        f(number, &page)?;
                        number += 1;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Reads a page, or what is left of the file.
fn fill(file: &mut File, page: &mut PageBytes) -> std::io::Result<()> {
    let mut rest = &mut page[..];
    while !rest.is_empty() {
        match file.read(rest) {
            Ok(0) => break,
            Ok(nr) => rest = rest.get_mut(nr..).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
