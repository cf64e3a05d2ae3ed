//! Gives the shared library its soname, so that programs ask for the ABI (`libgraccl.so.0`) and not
//! for one release of it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        let major = env!("CARGO_PKG_VERSION_MAJOR");
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libgraccl.so.{major}");
    }
}
