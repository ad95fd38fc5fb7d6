//! The wiring of each verb, in the order in which things start.

mod run;

pub use run::{RunError, run};

use crate::{
    args::{CheckArguments, Output},
    check,
    index::Index,
    source::{self, LoadError},
};

/// What `tailway check` found.
#[derive(Debug)]
pub struct Checked {
    pub text: String,
    pub warnings: Vec<String>,
    pub all_accepted: bool,
}

/// `tailway check`: what would become of the objects, without starting anything.
///
/// # Errors
/// When the files cannot be used.
pub fn check(arguments: &CheckArguments) -> Result<Checked, LoadError> {
    let loaded = source::load(&arguments.files)?;
    let mut index = Index::default();
    index.reset(loaded.objects);
    let statuses = index.evaluate().statuses;
    Ok(Checked {
        text: match arguments.output {
            Output::Table => check::table(&statuses),
            Output::Yaml => check::yaml(&statuses),
        },
        warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
        all_accepted: statuses.all_accepted(),
    })
}
