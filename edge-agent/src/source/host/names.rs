//! Names for temperatures. Two sensors of one label, as the disks or processors of one make have them, would be one row:
//! the second is `LABEL/2`.
//!
//! Which is the second must not change: the kernel numbers its chips in the order in which their drivers started, so they are
//! ordered by where they sit (`/sys/devices/…`, with bus and address), which changes only with the hardware.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Names of one scan.
#[derive(Debug, Default)]
pub(super) struct Names(HashSet<String>);

impl Names {
    /// A name that no other sensor of the scan has.
    pub(super) fn one_of_its_own(&mut self, label: &str) -> String {
        let numbered = (2..).map(|number| format!("{label}/{number}"));
        let mut names = std::iter::once(label.to_owned()).chain(numbered);
        let name = names
            .find(|name| !self.0.contains(name))
            .unwrap_or_default();
        self.0.insert(name.clone());
        name
    }
}

/// Where the chip of a sensor sits, and which of its sensors it is, by the kernel's id of it: `hwmon3_1`.
pub(super) fn place_of(id: &str) -> (PathBuf, u32) {
    place_below(Path::new("/sys/class/hwmon"), id)
}

fn place_below(folder: &Path, id: &str) -> (PathBuf, u32) {
    let (chip, number) = id.rsplit_once('_').unwrap_or((id, ""));
    let chip = folder.join(chip);
    let device = std::fs::canonicalize(chip.join("device"));
    // A virtual one has no device: by its own name then.
    let place = device
        .or_else(|_| std::fs::canonicalize(&chip))
        .unwrap_or(chip);
    (place, number.parse().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn sensors_of_one_name_are_numbered() {
        let mut names = Names::default();
        let found = ["a", "b", "a", "a", "a/2", "a"].map(|label| names.one_of_its_own(label));
        assert_eq!(found, ["a", "b", "a/2", "a/3", "a/2/2", "a/4"]);
    }

    /// As two equal disks: the kernel swaps their numbers between two boots.
    #[test]
    fn equal_chips_keep_their_order_whatever_the_kernel_calls_them() {
        let folder = tempfile::tempdir().unwrap();
        let boot = |name: &str, chips: [(&str, &str); 2]| {
            let class = folder.path().join(name);
            for (chip, device) in chips {
                let device = folder.path().join("devices").join(device);
                std::fs::create_dir_all(&device).unwrap();
                std::fs::create_dir_all(class.join(chip)).unwrap();
                symlink(&device, class.join(chip).join("device")).unwrap();
            }
            let mut ids = ["hwmon10_1", "hwmon9_2", "hwmon9_1"];
            ids.sort_by_cached_key(|id| place_below(&class, id));
            ids
        };
        let first = boot(
            "first",
            [("hwmon9", "0000:01:00.0"), ("hwmon10", "0000:02:00.0")],
        );
        assert_eq!(first, ["hwmon9_1", "hwmon9_2", "hwmon10_1"]);
        let second = boot(
            "second",
            [("hwmon10", "0000:01:00.0"), ("hwmon9", "0000:02:00.0")],
        );
        assert_eq!(second, ["hwmon10_1", "hwmon9_1", "hwmon9_2"]);
    }
}
