//! The buffer's disk and files: room, whether they may be written, whose they are, what stands there.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, StatVfsMountFlags, access};

use super::Finding;
use crate::buffer::{self, BufferError, BufferSettings, is_in_use};
use crate::place::{check_folder_of, disk_of, folder_of};
use crate::status::text::bytes;

/// Room with which a buffer soon fills the disk, and without which it cannot work.
const ROOM_WARN: u64 = 64 * 1024 * 1024;
const ROOM_FAIL: u64 = 4 * 1024 * 1024;

pub(super) fn check(path: &Path) -> Vec<Finding> {
    let mut findings = vec![room(path)];
    findings.extend(writable(path));
    findings.push(content(path));
    findings
}

fn room(path: &Path) -> Finding {
    let existing = folder_of(path).ancestors().find(|folder| folder.exists());
    let folder = existing
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let name = folder.display();
    let found = match disk_of(folder) {
        Ok(found) => found,
        Err(error) => {
            let mend = "mount the disk, or correct [buffer] path";
            return Finding::fail("disk", format!("{name}: {error}"), mend);
        }
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let mend = "free some room, or give [buffer] path another disk";
    if found.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let mend = "mount it for writing (mount -o remount,rw); look at dmesg for why it is not";
        Finding::fail(
            "disk",
            format!("{name} is on a read-only file system"),
            mend,
        )
    } else if free < ROOM_FAIL {
        Finding::fail("disk", format!("{name} has {} left", bytes(free)), mend)
    } else if found.f_files > 0 && found.f_favail == 0 {
        let mend = "remove files that are not needed, or give [buffer] path another disk";
        Finding::fail("disk", format!("{name} has no inodes left"), mend)
    } else if free < ROOM_WARN {
        Finding::warn("disk", format!("{name} has {} left", bytes(free)), mend)
    } else {
        Finding::ok("disk", format!("{name} has {} left", bytes(free)))
    }
}

/// Whether this user may write the folder, and each of the buffer's files that stand there.
fn writable(path: &Path) -> Vec<Finding> {
    let own = rustix::process::geteuid();
    let folder = folder_of(path);
    let mend_folder = format!(
        "chown {} {} and chmod 700 it",
        own.as_raw(),
        folder.display()
    );
    if !folder.exists() {
        let above = folder.ancestors().skip(1).find(|above| above.exists());
        let above = above
            .filter(|above| !above.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let name = folder.display();
        return vec![match access(above, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => Finding::ok("rights", format!("{name} does not exist; a start makes it")),
            Err(error) => Finding::fail(
                "rights",
                format!("{name} does not exist and cannot be made: {error}"),
                format!("make it for user {}", own.as_raw()),
            ),
        }];
    }
    if let Err(error) = check_folder_of(path) {
        let what = format!("{} cannot be written: {error}", folder.display());
        return vec![Finding::fail("rights", what, mend_folder)];
    }
    let mut findings = Vec::new();
    for file in BufferSettings::new(path).files() {
        let Ok(found) = file.symlink_metadata() else {
            continue;
        };
        let name = file.display();
        if let Err(error) = access(&file, Access::READ_OK | Access::WRITE_OK) {
            findings.push(Finding::fail(
                "rights",
                format!(
                    "{name}, of user {}, cannot be written: {error}",
                    found.uid()
                ),
                format!(
                    "chown {} {name}*, or run the agent as that user",
                    own.as_raw()
                ),
            ));
        } else if own.is_root() && found.uid() != 0 {
            findings.push(Finding::warn(
                "rights",
                format!(
                    "{name} is of user {}; what root may do says nothing of it",
                    found.uid()
                ),
                format!(
                    "run this as that user: sudo -u '#{}' edge-agent doctor",
                    found.uid()
                ),
            ));
            break;
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "rights",
            format!("{} may be written", folder.display()),
        ));
    }
    findings
}

fn content(path: &Path) -> Finding {
    let name = path.display();
    // What an agent has open it has looked at.
    if is_in_use(path) == Some(true) {
        return Finding::ok("buffer", format!("{name} is in use by an agent"));
    }
    match path.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Finding::ok("buffer", format!("{name} does not exist; a start makes it"));
        }
        Err(error) => {
            let mend = "give this user the right to see it";
            return Finding::fail("buffer", format!("{name}: {error}"), mend);
        }
        Ok(found) if !found.is_file() => {
            let mend = "give the agent a file of its own: [buffer] path";
            return Finding::fail("buffer", format!("{name} is no file"), mend);
        }
        Ok(_) => {}
    }
    match buffer::begins_damaged(path) {
        Ok(false) => Finding::ok("buffer", format!("{name} begins as a buffer")),
        Ok(true) => Finding::warn(
            "buffer",
            format!("{name} is damaged"),
            "a start saves what can be read; edge-agent buffer inspect says how much that is",
        ),
        Err(error @ BufferError::Foreign { .. }) => {
            Finding::fail("buffer", error.to_string(), error.help())
        }
        Err(error) => Finding::fail(
            "buffer",
            error.to_string(),
            "give this user the right to read it",
        ),
    }
}
