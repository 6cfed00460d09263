//! Which GPU the tests of kernels and of the CUDA engine run on.

/// The number in `EESD_TEST_DEVICE=cuda:N`. `None`: the emulator, which is the default and `emulated` by name.
pub fn tested_gpu() -> Option<usize> {
    let device = std::env::var("EESD_TEST_DEVICE").ok().filter(|device| device != "emulated")?;
    let number = device.strip_prefix("cuda:").and_then(|number| number.parse().ok());
    Some(number.unwrap_or_else(|| panic!("EESD_TEST_DEVICE={device}: expected emulated or cuda:N")))
}
