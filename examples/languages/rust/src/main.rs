fn main() {
    let (mut integer, mut float) = (itoa::Buffer::new(), ryu::Buffer::new());
    println!("hello from Rust: {} {}", integer.format(42), float.format(1.5));
}
