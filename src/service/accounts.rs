// SPDX-License-Identifier: BSD-3-Clause

//! Users and groups that options name, each by a name of the system's database or by a number.
//!
//! A name that the database has wins over a number: that one may look like a number is the database's
//! business. Must not know what whoever is named may do.

use lingerd_platform::process::{self, User};
use std::io;

/// Why it cannot be told who is meant.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nobody of that name, and it is no number.
    #[error("{option} '{name}': there is no such {kind}, and it is no number")]
    Nobody {
        /// Which option.
        option: &'static str,
        /// The name.
        name: String,
        /// "user" or "group".
        kind: &'static str,
    },
    /// A number that no user has, so that nothing tells its group.
    #[error("{option} '{uid}': no user has this number; give its group too: {option} {uid}:GROUP")]
    NoGroup {
        /// Which option.
        option: &'static str,
        /// The number.
        uid: u32,
    },
    /// The system does not tell who that is.
    #[error("{option} '{name}'")]
    LookUp {
        /// Which option.
        option: &'static str,
        /// The name.
        name: String,
        /// What it says.
        source: io::Error,
    },
}

/// Whom to run as.
#[derive(Debug)]
pub struct Account {
    /// The name under which the database has its supplementary groups, if it knows the user.
    pub name: Option<String>,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// The account that `option` names: a user, and a group, which is the user's own unless given.
///
/// # Errors
/// [`Error`].
pub fn account(option: &'static str, user: &str, group: Option<&str>) -> Result<Account, Error> {
    let (uid, known) = look_up(option, user)?;
    let gid = match (group, &known) {
        (Some(group), _) => self::group(option, group)?,
        (None, Some(known)) => known.gid,
        (None, None) => return Err(Error::NoGroup { option, uid }),
    };
    Ok(Account { name: known.map(|known| known.name), uid, gid })
}

/// The ids of the users and of the groups in a list that `option` names: `user,:group,user`.
///
/// # Errors
/// [`Error`].
pub fn list(option: &'static str, names: &str) -> Result<(Vec<u32>, Vec<u32>), Error> {
    let (mut users, mut groups) = (Vec::new(), Vec::new());
    for name in names.split(',') {
        match name.strip_prefix(':') {
            Some(name) => groups.push(group(option, name)?),
            None => users.push(look_up(option, name)?.0),
        }
    }
    Ok((users, groups))
}

/// The id of the group that `option` names.
///
/// # Errors
/// [`Error`].
pub fn group(option: &'static str, name: &str) -> Result<u32, Error> {
    let found = process::group(name).map_err(unknown(option, name))?;
    found.or_else(|| number(name)).ok_or_else(|| nobody(option, name, "group"))
}

/// The user's id, and what the database has under it.
fn look_up(option: &'static str, name: &str) -> Result<(u32, Option<User>), Error> {
    if let Some(user) = process::user(name).map_err(unknown(option, name))? {
        return Ok((user.uid, Some(user)));
    }
    let uid = number(name).ok_or_else(|| nobody(option, name, "user"))?;
    Ok((uid, process::user_with_id(uid).map_err(unknown(option, name))?))
}

/// An id in digits. The highest number is none: chown(2) takes it for leaving things as they are.
fn number(text: &str) -> Option<u32> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&id| is_number && id != u32::MAX)
}

fn nobody(option: &'static str, name: &str, kind: &'static str) -> Error {
    Error::Nobody { option, name: name.to_owned(), kind }
}

fn unknown(option: &'static str, name: &str) -> impl FnOnce(io::Error) -> Error + use<> {
    let name = name.to_owned();
    move |source| Error::LookUp { option, name, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_digits_that_an_id_can_be() {
        for (text, id) in [("0", Some(0)), ("065", Some(65)), ("4294967294", Some(u32::MAX - 1))] {
            assert_eq!(number(text), id, "{text}");
        }
        for text in ["", "+5", "-1", "4294967295", "4294967296", "0x10", "7 "] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn root_is_the_same_by_name_and_by_number() {
        let [name, number] = ["root", "0"].map(|user| account("-u", user, None).unwrap());
        assert_eq!((name.uid, name.gid), (number.uid, number.gid));
        assert!(name.name.is_some() && number.name.is_some());
    }

    #[test]
    fn a_list_has_users_and_groups() {
        assert_eq!(list("-a", "root").unwrap(), (vec![0], vec![]));
        assert_eq!(list("-a", ":4711,0,:7,4712").unwrap(), (vec![0, 4712], vec![4711, 7]));
        for wrong in ["", ":", "0,", "0, 1", "no-such-name", ":no-such-name", "0:0"] {
            let error = list("-a", wrong).unwrap_err().to_string();
            assert!(error.contains("-a '") && error.contains("there is no such"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_number_that_nobody_has_needs_a_group() {
        let unknown = (u32::MAX - 2).to_string();
        let error = account("-u", &unknown, None).unwrap_err().to_string();
        assert!(error.contains(&format!("-u {unknown}:GROUP")), "{error}");
        let account = account("-u", &unknown, Some("4711")).unwrap();
        assert_eq!((account.name, account.uid, account.gid), (None, u32::MAX - 2, 4711));
    }
}
