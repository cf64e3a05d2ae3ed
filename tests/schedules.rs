use graccl::schedule::*;
#[test]
fn all() {
    let s = verify_all(&mut |line| println!("{line}")).unwrap();
    println!("{s:?}");
}
