//! Tests that run under each release of containerd.

/// Makes a test of each function, which takes the release, for the installed containerd, 1.7 and
/// 2.1. A test is named `FUNCTION::containerd_2_1`.
macro_rules! on_each_containerd {
    ($($test:ident),+ $(,)?) => {
        $(mod $test {
            use soci_testkit::Release;

            #[test]
            fn installed_containerd() {
                super::$test(Release::Installed);
            }

            #[test]
            fn containerd_1_7() {
                super::$test(Release::V1_7);
            }

            #[test]
            fn containerd_2_1() {
                super::$test(Release::V2_1);
            }
        })+
    };
}

pub(crate) use on_each_containerd;
