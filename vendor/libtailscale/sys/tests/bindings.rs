//! The bindings are those of the header, which needs no libclang to tell.

/// The checksum of POSIX cksum(1): a CRC over the bytes and then over their number.
fn cksum(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: u8| {
        (0..8).fold(crc ^ (u32::from(byte) << 24), |crc, _| {
            if crc & 0x8000_0000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x04c1_1db7
            }
        })
    };
    let mut crc = bytes.iter().fold(0, |crc, byte| step(crc, *byte));
    let mut length = bytes.len();
    while length > 0 {
        crc = step(crc, length.to_le_bytes()[0]);
        length >>= 8;
    }
    !crc
}

#[test]
fn the_bindings_were_made_from_this_header() {
    let header = include_bytes!("../../tailscale.h");
    let expected = format!(
        "//! cksum of tailscale.h: {} {}",
        cksum(header),
        header.len()
    );
    let found = include_str!("../src/bindings.rs")
        .lines()
        .find(|line| line.contains("cksum of tailscale.h"));
    assert_eq!(
        found,
        Some(expected.as_str()),
        "run vendor/libtailscale/sys/gen.sh"
    );
}

#[test]
fn the_checksum_is_that_of_cksum() {
    assert_eq!(cksum(b"123456789"), 930_766_865);
    assert_eq!(cksum(b""), 4_294_967_295);
}
