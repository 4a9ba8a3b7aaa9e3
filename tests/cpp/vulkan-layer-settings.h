#pragma once

// llama.cpp's Vulkan backend names VK_EXT_layer_settings, which only its validation build uses. Debian 12's headers
// (1.3.239) are older than it. Included at the top of ggml-vulkan.cpp; with newer headers it is empty.

#include "ggml-vulkan-types.h"

#ifndef VK_EXT_layer_settings
namespace VULKAN_HPP_NAMESPACE {

enum class LayerSettingTypeEXT { eBool32 = 0 };

struct LayerSettingEXT {
    const char * layer;
    const char * setting;
    LayerSettingTypeEXT type;
    uint32_t n_values;
    const void * values;
};

struct LayerSettingsCreateInfoEXT { // a structure that nobody knows is skipped in a chain
    VkStructureType type = (VkStructureType) 1000496000;
    const void * next    = nullptr;
    uint32_t n_settings;
    const void * settings;

    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> & list) :
        n_settings(list.size()),
        settings(list.data()) {}
};

} // namespace VULKAN_HPP_NAMESPACE
#endif
