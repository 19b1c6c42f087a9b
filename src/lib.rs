pub mod pb;
pub mod sample;
