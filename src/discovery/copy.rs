//! The last Snapshot that was served, kept on disk for a start without the controller.
//!
//! The file is a line with the format's version, a SHA-256, and a `Copy` message. It holds the
//! private keys of certificates: the directory is to be in memory.

use super::{
    proto,
    wire::{self, Resources},
};
use crate::model::ObjectName;
use aws_lc_rs::digest;
use prost::Message;
use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a copy holds.
pub(super) struct Copy {
    pub(super) version: String,
    /// Of the program that wrote it.
    pub(super) program_version: String,
    pub(super) resources: Resources,
}

/// Why a file is passed over.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is no copy of a snapshot, or one of another format")]
    Foreign,
    #[error("it is torn: its checksum is wrong")]
    Torn,
    #[error("it is of Gateway {0}")]
    Other(String),
}

const FORMAT: &[u8] = b"tailway snapshot 1\n";

const CHECKSUM: usize = digest::SHA256_OUTPUT_LEN;

/// Reads the copy of this Gateway's Snapshot; `None` when there is no file.
pub(super) fn read(path: &Path, gateway: &ObjectName) -> Result<Option<Copy>, CopyError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let rest = bytes.strip_prefix(FORMAT).ok_or(CopyError::Foreign)?;
    let (checksum, body) = rest.split_at_checked(CHECKSUM).ok_or(CopyError::Torn)?;
    if digest::digest(&digest::SHA256, body).as_ref() != checksum {
        return Err(CopyError::Torn);
    }
    let copy = proto::Copy::decode(body).map_err(|_| CopyError::Foreign)?;
    match wire::name_in(copy.gateway.as_ref()) {
        Ok(name) if name == *gateway => {}
        Ok(name) => return Err(CopyError::Other(name.to_string())),
        Err(_) => return Err(CopyError::Foreign),
    }
    let resources = copy.resources.into_iter();
    Ok(Some(Copy {
        version: copy.version,
        program_version: copy.program_version,
        resources: resources
            .map(|one| (one.id.clone(), Arc::new(one)))
            .collect(),
    }))
}

/// Replaces the copy. Whoever reads sees the old one or the new one, also after a crash.
pub(super) fn write(path: &Path, gateway: &ObjectName, copy: &Copy) -> io::Result<()> {
    let message = proto::Copy {
        gateway: Some(wire::name_out(gateway)),
        program_version: copy.program_version.clone(),
        version: copy.version.clone(),
        resources: copy
            .resources
            .values()
            .map(|one| proto::Resource::clone(one))
            .collect(),
    };
    let body = message.encode_to_vec();
    let temporary = temporary(path);
    let replaced = fill(&temporary, &body).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = replaced {
        // It would take room from the next one.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    // The new name is on disk only once its directory is.
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

fn fill(path: &Path, body: &[u8]) -> io::Result<()> {
    // What a crash left may have another mode.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(FORMAT)?;
    file.write_all(digest::digest(&digest::SHA256, body).as_ref())?;
    file.write_all(body)?;
    file.sync_all()
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}
