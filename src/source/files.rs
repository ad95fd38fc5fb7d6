//! Files and directories to objects.

use super::document::{Problem, Unusable, split};
use crate::{api::Object, index::Key};
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// The objects of some files.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    pub objects: Vec<Object>,
    /// What was passed over.
    pub warnings: Vec<Problem>,
}

/// All that keeps files from being used; at least one problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    pub problems: Vec<Problem>,
}

/// Reads files, and the `.yaml`, `.yml` and `.json` files of directories, in the order of names.
///
/// # Errors
/// When one cannot be read, has a document that cannot be used, or an object is there twice. All
/// problems are told, not only the first.
pub fn load(paths: &[PathBuf]) -> Result<Loaded, LoadError> {
    let mut reader = Reader::default();
    for path in paths {
        reader.read(path);
    }
    if reader.problems.is_empty() {
        Ok(Loaded {
            objects: reader.objects,
            warnings: reader.warnings,
        })
    } else {
        Err(LoadError {
            problems: reader.problems,
        })
    }
}

#[derive(Default)]
struct Reader {
    objects: Vec<Object>,
    warnings: Vec<Problem>,
    problems: Vec<Problem>,
    /// Where each object stands.
    places: BTreeMap<Key, (PathBuf, usize)>,
}

impl Reader {
    fn read(&mut self, path: &Path) {
        match files(path) {
            Ok(files) => files.iter().for_each(|file| self.read_file(file)),
            Err(error) => self.problem(path, 0, format!("cannot be read: {error}")),
        }
    }

    fn read_file(&mut self, file: &Path) {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => return self.problem(file, 0, format!("cannot be read: {error}")),
        };
        for document in split(&text) {
            match document.object() {
                Ok(object) => self.add(file, document.line, object),
                Err(Unusable::Empty) => {}
                Err(Unusable::Unknown(kind)) => self.warnings.push(Problem {
                    file: file.into(),
                    line: document.line,
                    message: format!("{kind} is not read by tailway"),
                }),
                Err(Unusable::Broken(line, message)) => {
                    self.problem(file, document.line + line - 1, message);
                }
            }
        }
    }

    fn add(&mut self, file: &Path, line: usize, object: Object) {
        let key = Key::of(&object);
        if let Some((first, at)) = self.places.get(&key) {
            let message = format!("{key} is also at {}:{at}", first.display());
            return self.problem(file, line, message);
        }
        self.places.insert(key, (file.into(), line));
        self.objects.push(object);
    }

    fn problem(&mut self, file: &Path, line: usize, message: String) {
        self.problems.push(Problem {
            file: file.into(),
            line,
            message,
        });
    }
}

/// The file itself, or those of a directory. Names that start with a dot are left out: editors
/// and mounted ConfigMaps keep their own there.
pub(super) fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let hidden = file
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = file.extension().is_some_and(|extension| {
            ["yaml", "yml", "json"]
                .iter()
                .any(|known| extension == *known)
        });
        if yaml && !hidden && fs::metadata(&file)?.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

// === impl LoadError ===

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.problems.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for LoadError {}
