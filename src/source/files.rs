//! Files and directories to objects.

use super::{
    document::{Content, Problem, split},
    fields::Place,
    generations::Generations,
};
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
/// Objects without a `metadata.generation` get the first one, 1.
///
/// # Errors
/// When one cannot be read, has a document that cannot be used, or an object is there twice. All
/// problems are told, not only the first.
pub fn load(paths: &[PathBuf]) -> Result<Loaded, LoadError> {
    let mut loaded = read(paths)?;
    Generations::default().stamp(&mut loaded.objects);
    Ok(loaded)
}

/// The same, with generations as the files have them.
pub(super) fn read(paths: &[PathBuf]) -> Result<Loaded, LoadError> {
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
    places: BTreeMap<Key, (PathBuf, Place)>,
}

impl Reader {
    fn read(&mut self, path: &Path) {
        match files(path) {
            Ok(files) => files.iter().for_each(|file| self.read_file(file)),
            Err(error) => self.unreadable(path, &error),
        }
    }

    fn unreadable(&mut self, path: &Path, error: &io::Error) {
        let message = format!("cannot be read: {error}");
        self.problems.push(problem(path, None, message));
    }

    fn read_file(&mut self, file: &Path) {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => return self.unreadable(file, &error),
        };
        for document in split(&text) {
            let place = document.place();
            match document.content() {
                Ok(Content::Empty) => {}
                Ok(Content::Unknown(kind)) => {
                    let message = format!("{kind} is not read by tailway");
                    self.warnings.push(problem(file, Some(place), message));
                }
                Ok(Content::Object {
                    object,
                    unknown_fields,
                }) => {
                    let warnings = unknown_fields
                        .into_iter()
                        .map(|remark| problem(file, Some(remark.place), remark.message));
                    self.warnings.extend(warnings);
                    self.add(file, place, object);
                }
                Err(remarks) => {
                    let problems = remarks
                        .into_iter()
                        .map(|remark| problem(file, Some(remark.place), remark.message));
                    self.problems.extend(problems);
                }
            }
        }
    }

    fn add(&mut self, file: &Path, place: Place, object: Object) {
        let key = Key::of(&object);
        if let Some((first, at)) = self.places.get(&key) {
            let message = format!("{key} is also at {}:{}", first.display(), at.line);
            self.problems.push(problem(file, Some(place), message));
            return;
        }
        self.places.insert(key, (file.into(), place));
        self.objects.push(object);
    }
}

fn problem(file: &Path, place: Option<Place>, message: String) -> Problem {
    Problem {
        file: file.into(),
        place,
        message,
    }
}

/// The file itself, or those of a directory. Names that start with a dot are left out: editors
/// and mounted ConfigMaps keep their own there.
///
/// # Errors
/// When it is not there or cannot be read.
pub fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
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
