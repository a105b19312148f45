//! The service scripts of platform/, with the real daemon: as an administrator starts, stops, asks and
//! upgrades it. Where a system is not the one that this runs on, a stand-in takes the place of what its
//! scripts stand on.

mod bsd;
mod service;
