//! The texts that are read besides the main file, each one once, and the digest over all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::Loader;
use crate::error::Source;

/// The loader, and the files that were read through it. A file named twice is read once, so one
/// parse sees one version of it.
pub(crate) struct World<'a> {
    loader: &'a dyn Loader,
    texts: BTreeMap<String, Result<Arc<Source>, String>>,
    files: Vec<String>,
    digest: Sha256,
}

impl<'a> World<'a> {
    pub(crate) fn new(loader: &'a dyn Loader) -> Self {
        Self {
            loader,
            texts: BTreeMap::new(),
            files: Vec::new(),
            digest: Sha256::new(),
        }
    }

    /// Adds the main file, whose text the shell has already read.
    pub(crate) fn main(&mut self, name: &str, text: &str) -> Arc<Source> {
        self.absorb(text);
        Source::new(name, text.to_owned(), 0)
    }

    /// Reads a list, a file of certificates, or an included file that was read before.
    pub(crate) fn read(&mut self, path: &str) -> Result<Arc<Source>, String> {
        self.read_by(path, |loader| loader.read(path))
    }

    /// Reads an included file.
    pub(crate) fn include(&mut self, path: &str) -> Result<Arc<Source>, String> {
        self.read_by(path, |loader| loader.include(path))
    }

    fn read_by(
        &mut self,
        path: &str,
        read: impl FnOnce(&dyn Loader) -> Result<String, String>,
    ) -> Result<Arc<Source>, String> {
        if let Some(known) = self.texts.get(path) {
            return known.clone();
        }
        let read = read(self.loader).map(|text| {
            self.absorb(&text);
            self.files.push(path.to_owned());
            Source::new(path, text, self.files.len())
        });
        self.texts.insert(path.to_owned(), read.clone());
        read
    }

    pub(crate) fn glob(&self, pattern: &str) -> Result<Vec<String>, String> {
        self.loader.glob(pattern)
    }

    pub(crate) fn loader(&self) -> &'a dyn Loader {
        self.loader
    }

    /// Returns the paths read, in order, and the digest as hex digits.
    pub(crate) fn finish(self) -> (Vec<String>, String) {
        let digest = self
            .digest
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        (self.files, digest)
    }

    /// Adds a text to the digest, with its length first. Moving a line from the end of one file to
    /// the start of the next is therefore a change.
    fn absorb(&mut self, text: &str) {
        self.digest.update((text.len() as u64).to_le_bytes());
        self.digest.update(text.as_bytes());
    }
}
