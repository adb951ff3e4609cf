// SPDX-License-Identifier: Apache-2.0
// The files of the pages at `/` and `/docs`, as they are in this folder.
#pragma once

#include <string_view>

namespace kivi {

extern const std::string_view kPlaygroundHtml;
extern const std::string_view kPlaygroundCss;
extern const std::string_view kPlaygroundJs;
extern const std::string_view kReferenceHtml;
extern const std::string_view kReferenceJs;

}  // namespace kivi
