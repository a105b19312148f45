// SPDX-License-Identifier: BSD-3-Clause

//! The service scripts and packages in platform/, with the real daemon: as an administrator starts, stops, asks and
//! upgrades it, and what becomes of those that linger meanwhile. Where a system is not the one that this runs on, a
//! stand-in takes the place of what its scripts stand on.

mod alpine;
mod bsd;
mod launchd;
mod monitoring;
mod openrc;
mod root;
mod rpm;
mod runit;
mod s6;
mod scripts;
mod service;
mod smf;
